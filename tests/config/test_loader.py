"""Settings of the loader that cannot work are refused with one that does."""

from __future__ import annotations

import pytest

from megatron_vlm.config.checks import problems
from megatron_vlm.config.loading import load_config


def found(*settings: str) -> list[str]:
    needed = ["--data.tokenizer", "t", "--data.sources", "{text: a, captions: b}", "--schedule.train_steps", "100"]
    return problems(load_config(preset="tiny", overrides=[*needed, *settings]), 1)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("workers", "-1", "-1 must be at least 0"),
        ("prefetch_steps", "0", "0 must be at least 1; loader.workers 0 makes nothing ahead"),
        ("timeout_s", "0.2", "0.2 must be at least 1 and finite; a worker that starts"),
        ("timeout_s", ".inf", "inf must be at least 1 and finite"),
    ],
)
def test_what_cannot_work_is_refused(field: str, value: str, message: str) -> None:
    (line,) = found(f"--loader.{field}", value)
    assert line.startswith(f"loader.{field}: {message}")


def test_no_worker_and_many_are_both_well() -> None:
    for workers in ("0", "16"):
        assert found("--loader.workers", workers) == []
