"""Where pictures go: nothing outside the canvas, aspects kept where that is promised, budgets never exceeded."""

from __future__ import annotations

from fractions import Fraction
from math import ceil, floor, sqrt

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from megatron_vlm.config.pictures import Resize
from megatron_vlm.data.decoding.placement import native_grid, place

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


# -- native -------------------------------------------------------------------------------------------------------------


def stretch(rows: int, columns: int, height: int, width: int) -> Fraction:
    ratio = Fraction(rows * width, columns * height)
    return max(ratio, 1 / ratio)


PATCHES, GROUPS = st.integers(1, 32), st.integers(1, 4)


@given(SIDES, SIDES, PATCHES, GROUPS, st.integers(1, 4096))
@example(1, 5000, 16, 2, 64)
@example(5000, 1, 1, 1, 1)
@example(224, 224, 16, 1, 196)
def test_a_grid_is_within_its_budget_and_no_neighbour_has_a_nearer_aspect(
    height: int, width: int, patch: int, group: int, budget: int
) -> None:
    budget = max(budget, group * group)
    rows, columns = native_grid(height, width, patch, group, budget)
    assert rows % group == columns % group == 0
    assert min(rows, columns) >= group
    assert rows * columns <= budget
    assert native_grid(width, height, patch, group, budget) in [(columns, rows)] or stretch(
        rows, columns, height, width
    ) == stretch(columns, rows, width, height)
    # the sides of a picture of the same aspect that fits, in real numbers
    area = min(budget // group**2, height * width / (patch * group) ** 2)
    tall, wide = sqrt(area * height / width), sqrt(area * width / height)
    best = stretch(rows, columns, height, width)
    for r in {max(1, floor(tall + 1e-9)), max(1, ceil(tall - 1e-9))}:
        for c in {max(1, floor(wide + 1e-9)), max(1, ceil(wide - 1e-9))}:
            if r * c * group * group <= budget:
                assert stretch(r, c, height, width) >= best, (r, c)


@given(st.integers(64, 4000), st.integers(64, 4000))
def test_ordinary_pictures_use_the_budget_and_keep_their_aspect(height: int, width: int) -> None:
    """Aspects up to 3 on 1024 patches of 14 pixels, folded two by two."""
    if max(height, width) > 3 * min(height, width):
        return
    rows, columns = native_grid(height, width, 14, 2, 1024)
    own = height * width / 14**2
    assert rows * columns >= 0.75 * min(1024, own) - 4 * 4
    assert stretch(rows, columns, height, width) < 1.5


@pytest.mark.parametrize(
    ("height", "width", "budget", "grid"),
    [
        (224, 224, 256, (16, 16)),  # fits as it is
        (448, 448, 256, (16, 16)),  # and twice as large is scaled down to it
        (224, 448, 512, (16, 32)),
        (1000, 10, 256, (72, 2)),  # a strip becomes one group wide, as tall as its own size
        (14_000, 14, 256, (128, 2)),
        (1, 1, 256, (2, 2)),
    ],
)
def test_grids_by_hand(height: int, width: int, budget: int, grid: tuple[int, int]) -> None:
    assert native_grid(height, width, 14, 2, budget) == grid


@pytest.mark.parametrize("wrong", [(0, 1, 1, 1, 1), (1, -1, 1, 1, 1), (1, 1, 1, 2, 3)])
def test_what_makes_no_grid_is_refused(wrong: tuple[int, int, int, int, int]) -> None:
    with pytest.raises(ValueError, match="at least"):
        native_grid(*wrong)
