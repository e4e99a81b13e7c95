"""Ranks agree on the broken pictures of a step, and say no more than one number where there are none."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist

from megatron_vlm.data.broken_pictures import BrokenPicture
from megatron_vlm.training.broken_pictures import Agreed, agree_on_broken, count_broken
from tests.distributed.ranks import run_ranks

pytestmark = pytest.mark.distributed

CPU = torch.device("cpu")
#: a reason in letters of more than one byte, longer than the others
FIRST = BrokenPicture(1, 30, 61, 2, "größer als erlaubt " * 40)
SECOND = BrokenPicture(0, 7, 7, 0, "cut short")
THIRD = BrokenPicture(1, 30, 61, 0, "cut short")


def _spied(*args: Any) -> tuple[Agreed, int]:
    """What is agreed, and the collectives that it took."""
    made = []
    for name in ("all_reduce", "all_gather"):
        call = getattr(dist, name)
        setattr(dist, name, lambda *a, _call=call, **k: made.append(1) or _call(*a, **k))
    return agree_on_broken(*args), len(made)


def _agree(found: list[list[list[BrokenPicture]]], data_ranks: list[int], fold: bool = False) -> tuple[Agreed, int]:
    """`found` by rank; one group of all ranks."""
    rank = dist.get_rank()
    most = None
    if fold:  # the caller's own reduction, of which the count is one number
        both = torch.tensor([0, count_broken(found[rank])])
        dist.all_reduce(both, op=dist.ReduceOp.MAX)
        most = int(both[1])
    return _spied(found[rank], data_ranks[rank], None, CPU, most)


def test_ranks_that_decode_nothing_learn_of_it() -> None:
    """Two data-parallel ranks of two: the first of each decodes; both tensor ranks of the second one do."""
    found = [[[FIRST, SECOND], []], [[], []], [[], [THIRD]], [[], [THIRD]]]
    results = run_ranks(4, _agree, found, [0, 0, 1, 1])
    agreed = [result for result, _ in results]
    assert agreed[0].mine == agreed[1].mine == ((SECOND, FIRST), ())
    assert agreed[2].mine == agreed[3].mine == ((), (THIRD,))
    assert {result.all for result in agreed} == {(SECOND, THIRD, FIRST)}, "each once, and the same everywhere"
    assert {collectives for _, collectives in results} == {3}


@pytest.mark.parametrize(("fold", "collectives"), [(False, 1), (True, 0)])
def test_it_costs_nothing_where_no_picture_is_broken(fold: bool, collectives: int) -> None:
    results = run_ranks(2, _agree, [[[], []], [[], []]], [0, 1], fold)
    assert results == [(Agreed(((), ()), ()), collectives)] * 2


def test_a_count_that_is_reduced_elsewhere_is_enough() -> None:
    (first, _), (second, collectives) = run_ranks(2, _agree, [[[THIRD]], [[]]], [0, 0], True)
    assert first == second == Agreed(((THIRD,),), (THIRD,))
    assert collectives == 2


def _in_pairs(found: list[list[list[BrokenPicture]]]) -> Agreed:
    rank = dist.get_rank()
    groups = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    return agree_on_broken(found[rank], rank // 2, groups[rank // 2], CPU)


def test_a_model_parallel_group_agrees_by_itself() -> None:
    results = run_ranks(4, _in_pairs, [[[]], [[]], [[FIRST]], [[]]])
    assert results == [Agreed(((),), ())] * 2 + [Agreed(((FIRST,),), (FIRST,))] * 2
