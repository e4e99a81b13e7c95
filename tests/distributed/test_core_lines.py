"""Both lines of megatron-core give the same losses, and a checkpoint of one goes on under the other."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.core_lines import losses

OTHER = os.environ.get("MEGATRON_VLM_OTHER_LINE")

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(not OTHER, reason="MEGATRON_VLM_OTHER_LINE names no Python with the other line of megatron-core"),
]


def _elsewhere(action: str, data: Path, folder: Path) -> Any:
    assert OTHER
    command = [OTHER, "-W", "ignore", "-m", "tests.distributed.core_lines", action, str(data), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def _agree(one: list[dict[str, float]], other: list[dict[str, float]]) -> None:
    for ours, theirs in zip(one, other, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)


def test_losses_agree_and_checkpoints_go_on_under_the_other_line(data: Path, tmp_path: Path) -> None:
    here = losses("write", data, tmp_path / "here")
    there = _elsewhere("write", data, tmp_path / "there")
    moved_here = losses("resume", data, tmp_path / "there")
    moved_there = _elsewhere("resume", data, tmp_path / "here")
    for layout in here:
        _agree(here[layout], there[layout])
        _agree(moved_here[layout], there[layout][3:])
        _agree(moved_there[layout], here[layout][3:])
