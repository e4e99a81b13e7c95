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


def command(*arguments: object) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "megatron_vlm.cli.main", *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def sixteen(folder: Path) -> Path:
    """The first 16 records of the bundled pictures."""
    path = folder / "sixteen.tar"
    with tarfile.open(SAMPLE / "images" / "train-00000.tar") as source, tarfile.open(path, "w") as target:
        for member in source.getmembers()[: 3 * 16]:
            data = source.extractfile(member)
            assert data is not None
            target.addfile(member, io.BytesIO(data.read()))
    return path


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
    command("evaluate", tmp_path / "run", "--naming", f"seen={tar}", "--output", tmp_path / "results.json")
    naming = json.loads((tmp_path / "results.json").read_text())["naming"]["seen"]
    assert naming["questions"] == 16
    assert naming["accuracy"] == 1.0
    assert naming["blind"] < 0.7  # and it is the picture that tells it
