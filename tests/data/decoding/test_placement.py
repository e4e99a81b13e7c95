"""Where pictures go: nothing outside the canvas, aspects kept where that is promised, budgets never exceeded."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_vlm.config.pictures import Resize
from megatron_vlm.data.decoding.placement import place

SIDES = st.integers(1, 5000)


@given(
    st.sampled_from(["squash", "centre_crop", "letterbox", "native"]), SIDES, SIDES, st.integers(1, 700), st.integers(1, 700)
)
def test_everything_lies_inside(resize: Resize, height: int, width: int, rows: int, columns: int) -> None:
    placed = place(resize, (height, width), (rows, columns))
    left, upper, right, lower = placed.box
    assert 0 <= left < right <= width
    assert 0 <= upper < lower <= height
    (high, wide), (row, column) = placed.scaled, placed.offset
    assert 1 <= high <= rows - row
    assert 1 <= wide <= columns - column
    if resize != "letterbox":
        assert (placed.scaled, placed.offset) == ((rows, columns), (0, 0)), "the canvas is filled"


@given(SIDES, SIDES, st.integers(1, 700), st.integers(1, 700))
def test_a_centre_crop_keeps_the_aspect_and_the_short_side(height: int, width: int, rows: int, columns: int) -> None:
    left, upper, right, lower = place("centre_crop", (height, width), (rows, columns)).box
    assert (right - left) * rows == pytest.approx((lower - upper) * columns, rel=1e-9)
    assert (left, right) == (0, width) or (upper, lower) == (0, height)
    assert left == pytest.approx(width - right, abs=1e-6)
    assert upper == pytest.approx(height - lower, abs=1e-6)


@given(SIDES, SIDES, st.integers(1, 700), st.integers(1, 700))
def test_a_letterbox_holds_the_whole_picture_in_its_aspect(height: int, width: int, rows: int, columns: int) -> None:
    placed = place("letterbox", (height, width), (rows, columns))
    assert placed.box == (0, 0, width, height)
    high, wide = placed.scaled
    assert high == rows or wide == columns
    scale = min(rows / height, columns / width)
    assert high == pytest.approx(max(1, height * scale), abs=0.5 + 1e-6)
    assert wide == pytest.approx(max(1, width * scale), abs=0.5 + 1e-6)
    assert (rows - high) // 2 == placed.offset[0], "in the middle"
    assert (columns - wide) // 2 == placed.offset[1]


@given(st.sampled_from(["squash", "centre_crop", "letterbox"]), SIDES, SIDES, st.integers(1, 512))
def test_a_reduced_picture_is_never_enlarged(resize: Resize, height: int, width: int, size: int) -> None:
    placed = place(resize, (height, width), (size, size))
    reduced = (-(-height // placed.reduction), -(-width // placed.reduction))
    left, upper, right, lower = placed.box_in(*reduced)
    assert 0 <= left < right <= reduced[1]
    assert 0 <= upper < lower <= reduced[0]
    if placed.reduction > 1:
        # what rounding up adds to a side is less than a pixel of it
        assert right - left >= placed.scaled[1] - 1e-6
        assert lower - upper >= placed.scaled[0] - 1e-6
    if placed.reduction < 8 and min(height, width) >= 16:
        more = 2 * placed.reduction
        assert (placed.box[2] - placed.box[0]) < more * placed.scaled[1] or (
            placed.box[3] - placed.box[1]
        ) < more * placed.scaled[0], "as far as it goes"
