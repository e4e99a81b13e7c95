"""The scripts that a user starts first do what they say, from data to the last step."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.mark.distributed
def test_a_preset_runs_at_a_smaller_size_over_the_same_code_path(tmp_path: Path) -> None:
    """Two ranks with tensor and sequence parallelism, bundled data made anew, pictures from 80 % of the run."""
    environment = {**os.environ, "TMPDIR": str(tmp_path), "NPROC_PER_NODE": "2", "PYTHON": sys.executable}
    overrides = ["--schedule.train_steps", "5", "--schedule.warmup_steps", "1", "--logging.directory", "run"]
    done = subprocess.run(
        ["bash", str(EXAMPLES / "pretrain_vlm_1b.sh"), "--smoke", *overrides, "--logging.log_interval", "1"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    steps = [record for record in map(json.loads, lines) if record["kind"] == "train"]
    assert [step["step"] for step in steps] == [0, 1, 2, 3, 4]
    assert [step["pictures"] > 0 for step in steps] == [False, False, False, False, True]
