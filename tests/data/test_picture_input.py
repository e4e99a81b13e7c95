"""Pictures that are cut and joined are the same pictures, each with its own pixels, features and placeholders."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron_vlm.data.picture_input import PictureInput

BLOCK, NUMBERS = 4, 3  # pixels of a placeholder's side; numbers of a row of features
SIDES = st.integers(1, 4)


@st.composite
def inputs(draw: st.DrawFn, kind: str | None = None) -> PictureInput:
    """Every pixel and every number is another one's, so that a cut in a wrong place is seen."""
    kind = kind or draw(st.sampled_from(["squares", "native", "features", "native features"]))
    native, count = "native" in kind, draw(st.integers(1, 6))
    grids = [(draw(SIDES), draw(SIDES)) for _ in range(count)] if native else [(draw(SIDES),) * 2] * count
    sizes = tuple((down * BLOCK, across * BLOCK) for down, across in grids)
    rows, pixels = sum(down * across for down, across in grids), sum(3 * height * width for height, width in sizes)
    flat = torch.arange(pixels)
    return PictureInput(
        count,
        rows,
        None if "features" in kind else flat if native else flat.view(count, *sizes[0], 3),
        sizes if native else None,
        torch.arange(rows * NUMBERS).view(rows, NUMBERS) if "features" in kind else None,
    )


def each(shown: PictureInput) -> list[PictureInput]:
    return [shown.part(number, number + 1) for number in range(shown.count)]


def content(shown: PictureInput) -> torch.Tensor:
    given = shown.pixels if shown.features is None else shown.features
    assert given is not None
    return given.reshape(-1)


def assert_alike(one: PictureInput, other: PictureInput) -> None:
    assert (one.count, one.rows, one.sizes) == (other.count, other.rows, other.sizes)
    assert torch.equal(content(one), content(other))
    assert one.row_counts == other.row_counts
    assert one.costs == other.costs


@given(inputs())
def test_one_by_one_and_joined_they_are_what_they_were(shown: PictureInput) -> None:
    assert_alike(PictureInput.joined(each(shown)), shown)


@given(inputs(), st.data())
def test_a_part_is_the_pictures_that_it_names(shown: PictureInput, data: st.DataObject) -> None:
    first = data.draw(st.integers(0, shown.count))
    end = data.draw(st.integers(first, shown.count))
    part = shown.part(first, end)
    assert part.count == end - first
    assert part.rows == shown.rows_of(first, end) == sum(shown.row_counts[first:end])
    if part.count:
        assert_alike(part, PictureInput.joined(each(shown)[first:end]))
    else:
        assert not content(part).numel()
        assert part.part(0, 0).row_counts == []


@given(inputs())
def test_each_picture_has_the_pixels_of_its_place(shown: PictureInput) -> None:
    ends = torch.tensor([content(part).numel() for part in each(shown)]).cumsum(0)
    for part, end in zip(each(shown), ends.tolist(), strict=True):
        assert torch.equal(content(part), content(shown)[end - content(part).numel() : end])
        if part.sizes is not None and part.pixels is not None:
            assert part.pixels.numel() == 3 * part.sizes[0][0] * part.sizes[0][1] == 3 * BLOCK**2 * part.rows


@given(st.integers(1, 5), st.integers(1, 5))
def test_where_placeholders_are_fewer_than_blocks_each_has_its_share(down: int, across: int) -> None:
    """As where squares of rows are averaged: a placeholder for four blocks."""
    sizes = ((2 * BLOCK * down, 2 * BLOCK * across), (2 * BLOCK, 2 * BLOCK))
    shown = PictureInput(2, down * across + 1, torch.zeros(0, dtype=torch.uint8), sizes)
    assert shown.row_counts == [down * across, 1]
