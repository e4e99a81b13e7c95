"""Numbers and tables of plans."""

from __future__ import annotations

import pytest

from megatron_vlm.planning.text_table import human, table


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (999, "999"), (1_234_567, "1.23M"), (-2e3, "-2k"), (7.5e20, "750E"), (0.01234, "0.0123")]
)
def test_a_number_keeps_three_digits(value: float, text: str) -> None:
    assert human(value) == text


def test_columns_stand_below_each_other() -> None:
    assert list(table([["name", "n"], ["a", "1,000"], ["", ""]])) == ["name      n", "a     1,000", ""]
