"""What `evaluate` refuses before it opens a checkpoint; what it measures is in tests/distributed/test_evaluate.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_vlm.cli.main import main


def test_a_limit_below_nothing_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(tmp_path), "--limit", "-3"]) == 2
    assert "--limit is -3, but must be at least 1, or 0 for all documents and questions" in capsys.readouterr().err
