"""From pictures to names by the commands alone: a 2-layer model learns to name 16 pictures without a mistake."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

SAMPLE = Path(__file__).resolve().parents[2] / "examples" / "sample_data"


def command(*arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "megatron_vlm.cli.main", *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def sixteen(folder: Path) -> Path:
    """The first 16 records of the bundled pictures."""
    path = folder / "sixteen.tar"
    with tarfile.open(SAMPLE / "images" / "train-00000.tar") as source, tarfile.open(path, "w") as target:
        for member in source.getmembers()[: 3 * 16]:
            data = source.extractfile(member)
            assert data is not None
            target.addfile(member, io.BytesIO(data.read()))
    return path


def write_tasks(folder: Path, tar: Path) -> Path:
    """Two tasks in a folder: which of four captions is the picture's, and what is it called?"""
    with tarfile.open(tar) as source:
        records = [json.load(source.extractfile(m)) for m in source.getmembers() if m.name.endswith(".json")]  # type: ignore[arg-type]
        pictures = [name for name in source.getnames() if name.endswith(".png")]
    names = [record["caption"] for record in records]
    choice = []
    for number, picture in enumerate(pictures):
        others = [names[(number + step) % 16] for step in (1, 5, 11)]
        choices = sorted([names[number], *others])
        choice.append({"image": picture, "query": "", "choices": choices, "gold": choices.index(names[number])})
    tasks = folder / "tasks"
    tasks.mkdir()
    (tasks / "choice.jsonl").write_text("".join(json.dumps(record) + "\n" for record in choice))
    (tasks / "choice.yaml").write_text(
        f"form: multiple_choice\ndata: choice.jsonl\npictures: {tar}\ndelimiter: ''\ngroup: vision\n"
    )
    said = [{"image": picture, "question": "", "answer": name} for picture, name in zip(pictures, names, strict=True)]
    (tasks / "say.jsonl").write_text("".join(json.dumps(record) + "\n" for record in said))
    (tasks / "say.yaml").write_text(f"form: open\ndata: say.jsonl\npictures: {tar}\ndelimiter: ''\ngroup: vision\n")
    return tasks


def test_sixteen_pictures_are_named(tmp_path: Path) -> None:
    tar, tokenizer = sixteen(tmp_path), SAMPLE / "tokenizer"
    command("preprocess", "image-text", "--input", tar, "--output", tmp_path / "c", "--tokenizer", tokenizer)
    fields = {
        "data.tokenizer": tokenizer,
        "data.sources": f"{{captions: '{tmp_path / 'c'}'}}",
        "data.sequence_length": 64,
        "curriculum.stages": "[{name: pictures, sources: {captions: 1.0}}]",
        "model.language.num_layers": 2,
        "model.language.hidden_size": 64,
        "model.vision.num_layers": 2,
        "model.vision.hidden_size": 64,
        "schedule.train_steps": 150,
        "schedule.global_batch_size": 4,
        "schedule.micro_batch_size": 4,
        "schedule.lr": 3e-3,
        "logging.directory": tmp_path / "run",
        "logging.tensorboard": "false",
    }
    command("train", "--preset", "tiny", *(x for name, value in fields.items() for x in (f"--{name}", value)))
    tasks = ("--task", write_tasks(tmp_path, tar), "--control", "shuffled", "--control", "blind")
    command("evaluate", tmp_path / "run", "--naming", f"seen={tar}", *tasks, "--output", tmp_path / "results.json")
    results = json.loads((tmp_path / "results.json").read_text())
    naming = results["naming"]["seen"]
    assert naming["questions"] == 16
    assert naming["accuracy"] == 1.0
    assert naming["blind"] < 0.7  # and it is the picture that tells it
    scores = {(score["task"], score["control"]): score["score"]["mean"] for score in results["tasks"]}
    assert scores["choice", "seen"] == scores["say", "seen"] == 1.0
    assert max(scores[task, control] for task in ("choice", "say") for control in ("shuffled", "blind")) < 0.7
    assert results["stable_score"] == {"vision": 0.875}
    before_and_after = (tmp_path / "results.json", tmp_path / "results.json")
    assert "+0.0%" in command("evaluate", "--compare", *before_and_after)
