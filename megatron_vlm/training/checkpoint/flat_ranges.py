"""A range of a flattened tensor as boxes of the tensor: what a rank holds of a parameter, as a checkpoint can name it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple


class Box(NamedTuple):
    """A part of a tensor with consecutive values: its first index and its size in each dimension; its first value's place
    in the range that it is of."""

    offset: tuple[int, ...]
    size: tuple[int, ...]
    at: int


def boxes_of(shape: tuple[int, ...], start: int, stop: int) -> Iterator[Box]:
    """Boxes that make up the values `start` to `stop` - 1 of a tensor of `shape`, laid out by rows; in their order.

    At most 2 n - 1 of them in n dimensions: a part of the first row, whole rows, a part of the last.

    Raises:
        ValueError: a range that is not in the tensor.
    """
    if not 0 <= start <= stop <= math.prod(shape):
        raise ValueError(f"values {start} to {stop} are not in a tensor of shape {list(shape)}")
    yield from _boxes(shape, start, stop, 0)


def _boxes(shape: tuple[int, ...], start: int, stop: int, at: int) -> Iterator[Box]:
    if start == stop:
        return
    if len(shape) <= 1:
        yield Box((start,) * len(shape), (stop - start,) * len(shape), at)
        return
    row = math.prod(shape[1:])
    first, last = start // row, stop // row
    if first == last or (start % row and stop <= (first + 1) * row):
        yield from _inside(first, shape, start - first * row, stop - first * row, at)
        return
    if start % row:
        yield from _inside(first, shape, start - first * row, row, at)
        at += (first + 1) * row - start
        first += 1
    if last > first:
        rest = shape[1:]
        yield Box((first, *(0 for _ in rest)), (last - first, *rest), at)
        at += (last - first) * row
    yield from _inside(last, shape, 0, stop - last * row, at)


def _inside(index: int, shape: tuple[int, ...], start: int, stop: int, at: int) -> Iterator[Box]:
    """Boxes within one row."""
    for box in _boxes(shape[1:], start, stop, at):
        yield Box((index, *box.offset), (1, *box.size), box.at)
