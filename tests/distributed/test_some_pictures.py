"""Pictures on one rank's last micro-batch only: overlapped reduction neither hangs nor changes a number."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_vlm.training.loop import Run
from megatron_vlm.training.step import train_step
from tests.distributed.ranks import run_ranks
from tests.distributed.tiny_run import configuration, one_step, parameters

pytestmark = pytest.mark.distributed


def _packs(run: Run) -> list[Any]:
    """Six packs of text, then two with pictures."""
    run.planner.enter_stage(0)
    text = run.planner.next_packs(6)
    run.planner.enter_stage(1)
    sources = list(run.planner.sources.values())
    pictured: list[Any] = []
    while len(pictured) < 2:
        found = run.planner.next_packs(8)
        pictured += [pack for pack in found if any(sources[span.source].pictures[span.document] for span in pack)]
    return [*text, *pictured[:2]]


def _step(config: Any) -> tuple[float, float, list[int], dict[str, Any]]:
    run = Run(config)
    run._start()
    run.step = 2
    one_step(run)  # moments are warm
    packs = _packs(run)
    run.planner.next_packs = lambda count: packs  # type: ignore[method-assign]
    # dealt in order, so that pictures are in the last rank's last micro-batch and nowhere else
    each = len(packs) // run.topology.data_size
    first = run.topology.data_rank * each
    run._share = lambda shapes: list(range(first, first + each))  # type: ignore[method-assign]
    batches, _ = run.next_batches()
    result = train_step(run.engine, batches, run.topology, 1e-3)
    with run.engine.whole_parameters():
        return result.loss, result.grad_norm, [batch.pictures for batch in batches], parameters(run)


@pytest.fixture(scope="module")
def plain(data: Path) -> list[Any]:
    return run_ranks(2, _step, configuration(data))


def test_one_rank_has_pictures_at_the_end(plain: list[Any]) -> None:
    assert plain[0][2] == [0, 0]
    assert plain[1][2][0] == 0
    assert plain[1][2][1] > 0


@pytest.mark.parametrize(
    "parallel",
    [
        {"overlap_grad_reduce": True},
        {"overlap_grad_reduce": True, "overlap_param_gather": True},
        {"overlap_grad_reduce": True, "use_distributed_optimizer": False},
    ],
)
def test_overlapped_reduction_changes_nothing(parallel: dict[str, Any], data: Path, plain: list[Any]) -> None:
    for ours, theirs in zip(run_ranks(2, _step, configuration(data, parallel)), plain, strict=True):
        assert ours[0] == pytest.approx(theirs[0], abs=1e-6)
        assert ours[1] == pytest.approx(theirs[1], rel=3e-5)
        for name, value in theirs[3].items():
            assert np.abs(ours[3][name] - value).max() < 2e-6, name


def test_one_rank_alone_makes_the_same_step(data: Path, plain: list[Any]) -> None:
    alone = run_ranks(1, _step, configuration(data))[0]
    assert alone[0] == pytest.approx(plain[0][0], abs=2e-6)
    assert alone[1] == pytest.approx(plain[0][1], rel=3e-5)
    assert sum(alone[2]) == sum(plain[1][2])
