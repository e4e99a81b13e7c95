"""Settings of faults that could never act are refused with a value that works."""

from __future__ import annotations

import pytest

from megatron_vlm.config.checks import problems
from megatron_vlm.config.loading import load_config

BASE = ["--data.tokenizer", "t", "--data.sources", "{text: a, captions: b}", "--schedule.train_steps", "100"]


def lines(*overrides: str) -> list[str]:
    return problems(load_config(preset="tiny", overrides=[*BASE, *overrides]), 1)


@pytest.mark.parametrize(
    ("field", "value", "works", "reason"),
    [
        ("long_timeout_s", ".inf", "7200", "finite"),
        ("timeout_s", "-1", "0", "at least 0"),
        ("spike_window", "31", "32", "at least 32"),
        ("spike_history", "1", "2", "at least 2"),
        ("bad_step_window", "8", "9", "at least 9"),
        ("max_bad_steps", "-1", "0", "at least 0"),
        ("spike_deviations", ".nan", "4", "finite"),
        ("long_timeout_s", "10", "120", "at least 120"),
    ],
)
def test_refused_with_a_value_that_works(field: str, value: str, works: str, reason: str) -> None:
    (line,) = lines(f"--faults.{field}", value)
    assert line.startswith(f"faults.{field}: ")
    assert reason in line
    assert lines(f"--faults.{field}", works) == []
