"""Grids of pictures that keep their aspect: within the budget, as near to the aspect as whole sides allow; natively too."""

from __future__ import annotations

from fractions import Fraction
from math import ceil, floor, sqrt

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from megatron_vlm.config.picture_rows import PictureRows, as_rows, native_grid
from megatron_vlm.ops.native import native_operators

SIDES = st.integers(1, 5000)


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


# -- rows ---------------------------------------------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.integers(-1, 2**31 - 1), st.integers(-1, 2**31 - 1)), max_size=20),
    PATCHES,
    GROUPS,
    st.integers(1, 4096),
)
@example([(224, 224), (1, 2**31 - 1), (2**31 - 1, 2**31 - 1), (0, 7)], 14, 2, 4096)
def test_native_code_counts_the_same(sizes: list[tuple[int, int]], patch: int, fold: int, most: int) -> None:
    native = native_operators()
    assert native is not None
    picture = PictureRows(most, patch, fold)
    counted = native.native_rows(np.array(sizes, np.int32).reshape(-1, 2), most, patch, fold)
    assert counted.tolist() == [picture.of(height, width) for height, width in sizes]


@given(SIDES, SIDES, PATCHES, GROUPS, st.integers(1, 4096))
def test_rows_of_a_picture_are_those_of_its_canvas(height: int, width: int, patch: int, fold: int, most: int) -> None:
    picture = PictureRows(most, patch, fold)
    rows, columns = picture.grid(height, width)
    assert 1 <= picture.of(height, width) == picture.of_pixels(rows * patch, columns * patch) <= most


def test_one_number_for_all() -> None:
    picture = as_rows(16)
    assert not picture.native
    assert picture.of(7, 900) == picture.of_pixels(64, 64) == 16
    assert as_rows(picture) is picture


def test_a_size_that_is_not_known_takes_one_row() -> None:
    assert PictureRows(64, 8, 2).of(0, 0) == 1
    assert PictureRows(64, 8, 2).grid(0, 0) == (2, 2)
