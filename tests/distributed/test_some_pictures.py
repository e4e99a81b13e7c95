"""Pictures on one rank's last micro-batch only: overlapped reduction neither hangs nor changes a number."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_vlm.data.documents import Span
from megatron_vlm.data.step_plan import StepPlan
from megatron_vlm.training import engine
from megatron_vlm.training.loop import Run
from megatron_vlm.training.step import train_step
from tests.distributed.ranks import run_ranks
from tests.distributed.tiny_run import configuration, next_batches, one_step, parameters, plan_from

pytestmark = pytest.mark.distributed


Pack = tuple[Span, ...]


def _with_pictures(pack: Pack) -> Pack:
    return pack if any(span.pictures for span in pack) else ()


def _plan(run: Run, taken: Callable[[Pack], Pack], count: int) -> StepPlan:
    """Packs of text, then `count` of what is `taken` of those with pictures."""
    plan_from(run, 0)
    text, _, mixed = (run.data.planner.plan_step() for _ in range(3))
    assert text is not None
    assert mixed is not None
    pictured = [pack for pack in map(taken, mixed.packs) if pack][:count]
    assert len(pictured) == count
    return replace(text, packs=(*text.packs[: 8 - count], *pictured))


def _step(
    config: Any, taken: Callable[[Pack], Pack] = _with_pictures, count: int = 2
) -> tuple[float, float, list[int], dict[str, Any]]:
    run = Run(config)
    run._start()
    run.step = 2
    one_step(run)  # moments are warm
    plan = _plan(run, taken, count)
    run.data.planner.plan_step = lambda: plan  # type: ignore[method-assign]
    # dealt in order, so that pictures are in the last rank's last micro-batch and nowhere else
    each = len(plan.packs) // run.topology.data_size
    first = run.topology.data_rank * each
    loader = run.data._loader
    assert loader is not None
    loader._share = lambda plan: list(range(first, first + each))
    batches, _ = next_batches(run)
    result = train_step(run.engine, batches, run.topology, 1e-3)
    with run.engine.whole_parameters():
        return result.loss, result.grad_norm, [batch.pictures for batch in batches], parameters(run)


def step_in_buckets(config: Any, *taken: Any) -> tuple[float, float, list[int], dict[str, Any]]:
    """Encoder and language blocks in buckets of their own, as those of a model of real size are."""
    engine.DistributedDataParallelConfig = partial(engine.DistributedDataParallelConfig, bucket_size=20_000)  # type: ignore
    return _step(config, *taken)


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
    for ours, theirs in zip(run_ranks(2, step_in_buckets, configuration(data, parallel)), plain, strict=True):
        assert ours[0] == pytest.approx(theirs[0], abs=1e-6)
        assert ours[1] == pytest.approx(theirs[1], rel=3e-5)
        for name, value in theirs[3].items():
            assert np.abs(ours[3][name] - value).max() < 2e-6, name


def test_one_rank_alone_makes_the_same_step(data: Path, plain: list[Any]) -> None:
    alone = run_ranks(1, _step, configuration(data))[0]
    assert alone[0] == pytest.approx(plain[0][0], abs=2e-6)
    assert alone[1] == pytest.approx(plain[0][1], rel=3e-5)
    assert sum(alone[2]) == sum(plain[1][2])
