from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.distributed.tiny_run import SAMPLE


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bundled prose and pictures as indexed datasets `text` and `captions`.

    Made by processes of their own: ranks are forked from this one, which must have no tokenizer's threads.
    """
    folder = tmp_path_factory.mktemp("data")
    phrasings = ["--caption-key", "captions", "--caption-choice", "all"]
    jobs = {
        "text": ["text", "--input", str(SAMPLE / "prose" / "heldout.jsonl.zst")],
        "captions": ["image-text", "--input", str(SAMPLE / "images" / "train-00000.tar"), *phrasings],
    }
    for name, job in jobs.items():
        command = [sys.executable, "-m", "megatron_vlm.cli.main", "preprocess", *job, "--output", str(folder / name)]
        subprocess.run([*command, "--tokenizer", str(SAMPLE / "tokenizer")], check=True, capture_output=True)
    return folder
