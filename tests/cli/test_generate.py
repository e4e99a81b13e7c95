"""What `generate` refuses before it opens a checkpoint; the command is in tests/distributed/test_generation.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_vlm.cli.main import main


@pytest.mark.parametrize("batch", ["0", "-1"])
def test_a_batch_of_no_prompt_is_refused(batch: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", str(tmp_path), "--prompt", "a", "--batch", batch]) == 2
    assert f"--batch is {batch}, but at least 1 prompt" in capsys.readouterr().err
