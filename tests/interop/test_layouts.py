"""Layouts only move values: in and out again is the same to the bit, and rows of a head stay together."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron_vlm.interop.families.lfm2_vl import ChannelsLast
from megatron_vlm.interop.layouts import Constant, GroupedQKV, Layout, Repeated, Same, Stacked


def _numbered(shapes: tuple[tuple[int, ...], ...]) -> list[torch.Tensor]:
    """Every value another one."""
    found, first = [], 0
    for shape in shapes:
        count = int(torch.Size(shape).numel())
        found.append(torch.arange(first, first + count).view(shape))
        first += count
    return found


sizes = st.integers(1, 4)
layouts = st.one_of(
    st.builds(lambda a, b: Same((a, b * 6), (a, b, 2, 3)), sizes, sizes),
    st.builds(lambda a, b, c: Stacked(((a, c), (b, c))), sizes, sizes, sizes),
    st.builds(
        lambda groups, shared, head, width, fused: GroupedQKV(groups * shared, groups, head, width, fused),
        *(sizes, sizes, sizes, st.none() | sizes, st.booleans()),
    ),
    st.builds(ChannelsLast, sizes, sizes),
)


@given(layouts)
def test_out_undoes_in(layout: Layout) -> None:
    parts = _numbered(layout.theirs)
    whole = layout.join(parts)
    assert tuple(whole.shape) == layout.ours
    again = layout.split(whole)
    assert len(again) == len(parts)
    assert all(torch.equal(a, b) for a, b in zip(again, parts, strict=True))


def test_a_group_has_its_queries_its_key_and_its_value_together() -> None:
    query, key, value = torch.tensor([0, 1, 2, 3]), torch.tensor([10, 11]), torch.tensor([20, 21])
    mixed = GroupedQKV(4, 2, 1, None).join([query, key, value])
    assert mixed.tolist() == [0, 1, 10, 20, 2, 3, 11, 21]
    assert torch.equal(GroupedQKV(4, 2, 1, None, fused=True).join([torch.cat([query, key, value])]), mixed)


def test_a_patch_pixel_by_pixel_becomes_channel_by_channel() -> None:
    assert ChannelsLast(1, 2).join([torch.arange(12).view(1, 12)]).tolist() == [[0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11]]


def test_what_a_family_cannot_hold_is_said() -> None:
    assert Constant((3,), 1.0).split(torch.ones(3)) == []
    with pytest.raises(ValueError, match="as if all of it were 1, which is not so"):
        Constant((3,), 1.0).split(torch.tensor([1.0, 1.0, 1.5]))
    with pytest.raises(ValueError, match="the 2 heads have gains of their own"):
        Repeated((1,), 2).join([torch.ones(1), torch.zeros(1)])
