"""Data-parallel ranks share a global batch's packs: each once, as many each, and of like cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from megatron_vlm.planning.flops import BatchShape, step_flops
from megatron_vlm.training.loop import Run
from tests.distributed.ranks import run_ranks
from tests.distributed.tiny_run import configuration, next_batches, plan_from

pytestmark = pytest.mark.distributed

#: two costly packs side by side, which dealing them out in order would give to one rank
SHAPES = [BatchShape(128, (16,) * 8, 0)] * 3 + [BatchShape(128, (64, 64), 2)] * 2 + [BatchShape(128, (16,) * 8, 0)] * 3


def _shares(config: Any) -> list[int]:
    run = Run(config)
    return run.data.share_of(SHAPES, 1)


def test_costly_packs_go_to_different_ranks(data: Path) -> None:
    first, second = run_ranks(2, _shares, configuration(data))
    assert sorted(first + second) == list(range(8))
    assert len(first) == len(second) == 4
    assert len({3, 4} & set(first)) == len({3, 4} & set(second)) == 1


def test_one_rank_keeps_the_order(data: Path) -> None:
    assert run_ranks(1, _shares, configuration(data))[0] == list(range(8))


def _costs(config: Any) -> tuple[float, float]:
    """This rank's operations over the mean of the ranks, over steps with pictures, dealt and in order."""
    run = Run(config)
    plan_from(run, 2)
    run.engine.enter_stage(1)
    seen: list[list[BatchShape]] = []
    share = run.data.share_of
    run.data.share_of = lambda shapes, stage: seen.append(shapes) or share(shapes, stage)  # type: ignore[func-returns-value,method-assign]
    worst = [0.0, 0.0]
    for _ in range(3):
        next_batches(run)
        costs = [step_flops(config.model, 1000, shape, ()) for shape in seen[-1]]
        mean = sum(costs) / 2
        for at, mine in enumerate((share(seen[-1], 1), range(run.topology.data_rank * 4, run.topology.data_rank * 4 + 4))):
            worst[at] = max(worst[at], sum(costs[number] for number in mine) / mean)
    return worst[0], worst[1]


def test_ranks_wait_less_than_if_packs_were_dealt_in_order(data: Path) -> None:
    ranks = run_ranks(2, _costs, configuration(data))
    dealt, in_order = (max(rank[at] for rank in ranks) for at in (0, 1))
    assert dealt < 1.05
    assert dealt < in_order
