"""Every command that the documentation gives is run as it stands, or is of a kind that cannot be run here."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import yaml
from PIL import Image

from tests.docs.documented import NOT_RUN, PAGES, ROOT, Command, commands

SAMPLE = ROOT / "examples" / "sample_data"
ALL = commands()


def test_every_page_is_read() -> None:
    pages = {path.relative_to(ROOT).as_posix() for path in ROOT.glob("docs/**/*.md")} - {"docs/cli.md"}
    assert pages <= set(PAGES)


@pytest.mark.parametrize("command", ALL, ids=lambda command: f"{command.page}: {command.line[:60]}")
def test_a_command_is_of_one_kind(command: Command) -> None:
    assert len(command.reasons) <= 1, command.reasons


def test_every_kind_is_met_and_most_commands_are_run() -> None:
    met = {reason for command in ALL for reason in command.reasons}
    assert set(NOT_RUN) - met <= {"wants Slurm or Kubernetes"}
    ours = [command for command in ALL if "megatron-vlm" in command.line.split()[0]]
    assert sum(not command.reasons for command in ours) > 0.6 * len(ours)


def _lay_out(folder: Path) -> None:
    """What the commands name: inputs of every form, a configuration, prompts, tasks."""
    for name in ("examples", "docs", "tests", "benchmarks", "tools"):
        (folder / name).symlink_to(ROOT / name)
    tokenizer = json.loads((SAMPLE / "tokenizer" / "tokenizer.json").read_text(encoding="utf-8"))
    tokenizer["added_tokens"].append({**tokenizer["added_tokens"][0], "id": 4096, "content": "</s>"})  # ends a turn of LLaVA
    (folder / "tokenizer").mkdir()
    for where in ("tokenizer", "."):
        (folder / where / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    for name in ("text", "prose"):
        (folder / name).mkdir()
        shutil.copy(SAMPLE / "prose" / "heldout.jsonl.zst", folder / name / "train-00000.jsonl.zst")
    (folder / "data").mkdir()
    (folder / "images").mkdir()
    (folder / "pairs").mkdir()
    (folder / "pictures").mkdir()
    small, held_out = SAMPLE / "images" / "train-00003.tar", SAMPLE / "images" / "heldout-concepts-00000.tar"
    for target in ("images/train-00000.tar", "pairs/train-00000.tar", "pictures-00000.tar"):
        shutil.copy(small, folder / target)
    for target in ("pairs/heldout-00000.tar", "data/heldout-style-00000.tar"):
        shutil.copy(held_out, folder / target)
    names = []
    with tarfile.open(small) as tar:
        for member in tar:
            if member.name.endswith(".png") and (file := tar.extractfile(member)) is not None:
                names.append(member.name)
                for where in ("pictures", "images"):
                    (folder / where / member.name).write_bytes(file.read() if where == "pictures" else b"")
    for name in names:
        shutil.copy(folder / "pictures" / name, folder / "images" / name)
    shutil.copytree(folder / "pictures", folder / "data" / "images")
    Image.open(io.BytesIO((folder / "pictures" / names[0]).read_bytes())).convert("RGB").save(folder / "cat.jpg")
    talk = [
        {
            "id": str(number),
            "image": name,
            "conversations": [
                {"from": "human", "value": "<image>\nWhat is it?"},
                {"from": "gpt", "value": "A picture."},
            ],
        }
        for number, name in enumerate(names)
    ]
    (folder / "llava_instruct.json").write_text(json.dumps(talk), encoding="utf-8")
    _interleaved(folder / "obelics", names)
    lines = [json.dumps({"prompt": "a picture of", "image": name}) for name in names[:3]]
    (folder / "questions.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    run = {
        "preset": "tiny",
        "data": {
            "tokenizer": "tokenizer",
            "sources": {"text": "data/text", "captions": "data/captions"},
            "validation": {"unread": "data/text"},
            "validation_documents": 8,
        },
        "schedule": {"train_steps": 10, "warmup_steps": 2, "global_batch_size": 8, "micro_batch_size": 1},
        "logging": {"directory": "runs/first", "tensorboard": False},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(run), encoding="utf-8")


def _interleaved(folder: Path, names: list[str]) -> None:
    import pyarrow
    import pyarrow.parquet

    folder.mkdir()
    rows = {
        "images": [[name, None] for name in names[:20]],
        "texts": [[None, "a text that stands after it"] for _ in names[:20]],
    }
    pyarrow.parquet.write_table(pyarrow.table(rows), folder / "part-00000.parquet")


def _before(command: Command, folder: Path) -> None:
    """What a reader would have, or would do first."""
    starts = " train " in f" {command.line} " and "run.yaml" in command.line and "--resume" not in command.line
    if starts:
        shutil.rmtree(folder / "runs" / "first", ignore_errors=True)
    if "data/more-text" in command.line:
        for file in (folder / "data").glob("text.*"):
            shutil.copy(file, file.with_name(file.name.replace("text.", "more-text.", 1)))
    first = folder / "runs" / "first"
    for name in ("a", "1b"):
        if f"runs/{name}" in command.line and first.exists() and not (folder / "runs" / name).exists():
            shutil.copytree(first, folder / "runs" / name)
    for target in ("exported",):
        shutil.rmtree(folder / target, ignore_errors=True)


# the README shows how a run is evaluated before it can have been trained here
EARLY = [c for c in ALL if not c.reasons and c.page == "README.md" and " evaluate " in c.line]
RUN = [*(c for c in ALL if not c.reasons and c not in EARLY), *EARLY]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all commands, in the order of the pages: later ones use what earlier ones made."""
    folder = tmp_path_factory.mktemp("reader")
    _lay_out(folder)
    return folder


@pytest.mark.slow
@pytest.mark.timeout(660)
@pytest.mark.parametrize("command", RUN, ids=lambda command: f"{command.page}: {command.line[:60]}")
def test_a_command_does_what_it_says(command: Command, folder: Path) -> None:
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }
    _before(command, folder)
    done = subprocess.run(
        ["bash", "-c", command.line], cwd=folder, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode in _allowed(command), f"{command.line}\nexit {done.returncode}:\n{done.stderr.strip()[-2000:]}"


def _allowed(command: Command) -> tuple[int, ...]:
    """Some commands show a refusal, and some a machine without a GPU."""
    if "tensor_model_parallel_size 3" in command.line:
        return (2,)
    if command.line.startswith(("megatron-vlm plan vlm_7b --gpus 8", "megatron-vlm plan vlm_1b --gpus 16")):  # do not fit
        return (1,)
    return (0,)
