"""Boxes out of text, and their overlap."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_vlm.evaluation.boxes import Box, box_text, intersection_over_union, read_box

shares = st.floats(0, 1, allow_nan=False)
boxes = st.builds(lambda a, b, c, d: Box(min(a, c), min(b, d), max(a, c), max(b, d)), shares, shares, shares, shares)


@pytest.mark.parametrize(
    ("text", "scale", "box"),
    [
        ("[0.1, 0.2, 0.5, 0.75]", 1, Box(0.1, 0.2, 0.5, 0.75)),
        ("It is at [0.5,0.75,0.1,0.2], I think.", 1, Box(0.1, 0.2, 0.5, 0.75)),
        ("<box>(100,200),(500,750)</box>", 1000, Box(0.1, 0.2, 0.5, 0.75)),
        ("12 34 56 78", 100, Box(0.12, 0.34, 0.56, 0.78)),
        ("on the left", 1, None),
        ("[0.1, 0.2, 0.5]", 1, None),
    ],
)
def test_reading(text: str, scale: float, box: Box | None) -> None:
    assert read_box(text, scale) == (None if box is None else pytest.approx(box))


@given(boxes, st.sampled_from([(1.0, 2, None), (1000.0, 0, None), (100.0, 0, None), (10.0, 1, None), (100.0, 1, 1)]))
def test_a_box_is_read_as_it_was_written(box: Box, form: tuple[float, int, int | None]) -> None:
    scale, digits, asked = form
    text = box_text(box, scale, asked)
    assert text.count(".") == (4 if digits else 0)
    found = read_box(text, scale)
    assert found is not None
    assert found == pytest.approx(box, abs=0.51 * 10**-digits / scale)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (Box(0, 0, 1, 1), Box(0, 0, 1, 1), 1.0),
        (Box(0, 0, 0.5, 1), Box(0.5, 0, 1, 1), 0.0),
        (Box(0, 0, 0.5, 1), Box(0.25, 0, 0.75, 1), 1 / 3),
        (Box(0, 0, 1, 1), Box(0.25, 0.25, 0.75, 0.75), 0.25),
        (Box(0.5, 0.5, 0.5, 0.5), Box(0.5, 0.5, 0.5, 0.5), 0.0),
    ],
)
def test_overlap(one: Box, other: Box, expected: float) -> None:
    assert intersection_over_union(one, other) == pytest.approx(expected)


@given(boxes, boxes)
def test_overlap_is_symmetric_and_a_share(one: Box, other: Box) -> None:
    overlap = intersection_over_union(one, other)
    assert 0 <= overlap <= 1 + 1e-12
    assert overlap == pytest.approx(intersection_over_union(other, one))
