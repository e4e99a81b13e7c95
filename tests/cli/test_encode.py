"""`megatron-vlm encode`, and a run that reads what it wrote, by the commands of docs/pictures.md."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_vlm.cli.main import main

SAMPLE = Path(__file__).resolve().parents[2] / "examples" / "sample_data"
STAGE = "[{name: frozen, sources: {captions: 1}, freeze: [vision]}]"


def command(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "megatron_vlm.cli.main", *words],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_a_run_reads_what_was_encoded(tmp_path: Path) -> None:
    def done(*words: str) -> str:
        told = command(tmp_path, *words)
        assert told.returncode == 0, told.stderr[-3000:]
        return told.stdout

    tokenizer = str(SAMPLE / "tokenizer")
    pictures = str(SAMPLE / "images" / "train-00003.tar")
    done("preprocess", "image-text", "--input", pictures, "--output", "captions", "--tokenizer", tokenizer)
    shape = [*("--schedule.train_steps", "2"), *("--schedule.warmup_steps", "0"), *("--logging.tensorboard", "false")]
    common = [*("--data.tokenizer", tokenizer), *("--data.sources.captions", "captions"), *("--curriculum.stages", STAGE)]
    done("train", "--preset", "tiny", *common, *shape, "--logging.directory", "first")
    assert "Wrote captions.features.bin and .idx: features of" in done("encode", "captions", "--from", "first")
    assert "nothing to do" in done("encode", "captions.idx", "--from", "first")
    done("validate", "captions.features")
    again = ["train", "--config", "first/config.yaml", "--data.features.captions", "captions.features"]
    told = done(*again, "--logging.directory", "kept", "--checkpoint.start_from", "first")
    assert "pictures of captions are not encoded: their features are read from captions.features" in told
    refused = command(tmp_path, *again, "--logging.directory", "other", "--schedule.seed", "3")
    assert refused.returncode == 2
    assert "was made by an encoder of other weights" in refused.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--micro-batch", "0"], "--micro-batch is 0; at least 1"),
        (["--image-size", "-3"], "--image-size is -3; at least 1"),
        (["--workers", "0"], "--workers is 0; at least one thread has to do the work"),
        ([], "no checkpoint here"),
    ],
)
def test_what_cannot_be_done_ends_with_2(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["encode", str(tmp_path / "d"), "--from", str(tmp_path / "none"), *words]) == 2
    assert message in capsys.readouterr().err
