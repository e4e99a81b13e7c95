"""Flat ranges as boxes: every value once and in order, in few boxes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_vlm.training.checkpoint.flat_ranges import Box, boxes_of


@given(st.data())
def test_boxes_make_up_the_range(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.lists(st.integers(1, 5), max_size=4)))
    count = math.prod(shape)
    start = data.draw(st.integers(0, count))
    stop = data.draw(st.integers(start, count))
    whole, seen = np.arange(count).reshape(shape), []
    boxes = list(boxes_of(shape, start, stop))
    for box in boxes:
        assert box.at == len(seen)
        part = whole[tuple(slice(o, o + n) for o, n in zip(box.offset, box.size, strict=True))]
        assert part.size == math.prod(box.size) > 0
        seen += part.ravel().tolist()
    assert seen == list(range(start, stop))
    assert len(boxes) <= max(1, 2 * len(shape) - 1)


def test_a_matrix() -> None:
    assert list(boxes_of((4, 10), 3, 35)) == [Box((0, 3), (1, 7), 0), Box((1, 0), (2, 10), 7), Box((3, 0), (1, 5), 27)]
    assert list(boxes_of((4, 10), 10, 40)) == [Box((1, 0), (3, 10), 0)]
    assert list(boxes_of((4, 10), 12, 15)) == [Box((1, 2), (1, 3), 0)]


@pytest.mark.parametrize(("start", "stop"), [(-1, 3), (2, 1), (0, 41)])
def test_what_is_outside(start: int, stop: int) -> None:
    with pytest.raises(ValueError, match=r"are not in a tensor of shape \[4, 10\]"):
        list(boxes_of((4, 10), start, stop))
