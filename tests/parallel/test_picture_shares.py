"""Shares of pictures: all of them, in order, of like cost."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from megatron_vlm.parallel.picture_shares import picture_shares


@given(st.lists(st.integers(1, 400), max_size=40), st.integers(1, 9))
def test_every_picture_is_in_one_share_and_none_has_much_more_than_its_part(costs: list[int], ranks: int) -> None:
    shares = picture_shares(costs, ranks)
    assert len(shares) == ranks
    assert [number for first, end in shares for number in range(first, end)] == list(range(len(costs)))
    for first, end in shares:
        assert sum(costs[first:end]) <= sum(costs) / ranks + max(costs, default=0)


def test_pictures_that_are_alike_are_dealt_evenly() -> None:
    assert picture_shares([1] * 8, 4) == [(0, 2), (2, 4), (4, 6), (6, 8)]
    assert [end - first for first, end in picture_shares([1] * 10, 4)] in ([2, 3, 2, 3], [3, 2, 3, 2])
    assert picture_shares([5], 3) in ([(0, 0), (0, 1), (1, 1)], [(0, 1), (1, 1), (1, 1)])
