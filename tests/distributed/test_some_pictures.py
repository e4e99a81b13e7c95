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


def _lay_in_buckets() -> None:
    """Encoder and language blocks in buckets of their own, as those of a model of real size are."""
    engine.DistributedDataParallelConfig = partial(engine.DistributedDataParallelConfig, bucket_size=20_000)  # type: ignore


def step_in_buckets(config: Any, *taken: Any) -> tuple[float, float, list[int], dict[str, Any]]:
    _lay_in_buckets()
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


def _order(config: Any) -> tuple[list[str], list[list[str]]]:
    """What begins with a step, bucket by bucket, and the chain of those that follow: names of parameters."""
    _lay_in_buckets()
    run = Run(config)
    run.step = 2  # of a stage that trains the encoder
    run._enter_stage()
    (chunk,) = run.engine.ddp
    names = {parameter: name for name, parameter in engine.unwrap(chunk).named_parameters()}

    def named(group: Any) -> list[str]:
        return [names[parameter] for parameter in group.params]

    chain, group = [], chunk._first_gathers[-1]
    while group is not None:
        chain.append(named(group))
        group = group.next_param_gather_bucket_group
    return [name for group in chunk._first_gathers for name in named(group)], chain


def test_what_a_rank_may_not_come_to_is_gathered_first(data: Path) -> None:
    """And the rest in the order of a forward pass, each bucket when the one before it is there."""
    first, chain = run_ranks(2, _order, configuration(data, {"overlap_grad_reduce": True, "overlap_param_gather": True}))[0]
    assert len(chain) > 3
    assert {name.partition(".")[0] for names in chain for name in names} == {"language_model"}
    assert "language_model.embedding.word_embeddings.weight" in chain[0]
    layers = [int(name.split(".")[3]) for names in chain for name in names if ".layers." in name]
    assert layers == sorted(layers) or [min(layers), max(layers)] == [layers[0], layers[-1]]
    assert {"vision", "projector", "language_model"} == {name.partition(".")[0] for name in first}
    assert set(first) & {name for names in chain[1:] for name in names} == set()


#: stages in which words learn nothing, so that only rows of pictures lead back from the layers to what is trained
ALIGNING: dict[str, dict[str, Any]] = {
    "projector alone": {
        "curriculum.stages": "[{name: t, until_steps: 2, sources: {text: 1.0}}, "
        "{name: align, sources: {text: 0.5, captions: 0.5}, freeze: [language, vision]}]"
    },
    "low-rank updates": {
        "model.lora.rank": 4,
        "curriculum.stages": "[{name: t, until_steps: 2, sources: {text: 1.0}}, "
        "{name: tune, sources: {text: 0.5, captions: 0.5}, freeze: [vision]}]",
    },
}


@pytest.mark.parametrize("overlap", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ALIGNING)
def test_a_rank_that_encodes_nothing_goes_back_as_far(name: str, overlap: bool, data: Path) -> None:
    """One picture for two tensor-parallel ranks, whose layers exchange gradients only where something below them learns."""
    parallel = {"tensor_model_parallel_size": 2, "vision": "data_first_stage", "overlap_grad_reduce": overlap}
    (alone,) = run_ranks(1, step_of_one_picture, configuration(data, **ALIGNING[name]))
    assert alone[2] == [0, 0, 0, 1]
    for found in run_ranks(2, step_of_one_picture, configuration(data, parallel, **ALIGNING[name])):
        assert found[:2] == (pytest.approx(alone[0], abs=5e-6), pytest.approx(alone[1], rel=3e-5))


def step_of_one_picture(config: Any) -> tuple[float, float, list[int], dict[str, Any]]:
    return step_in_buckets(config, lambda pack: tuple(span for span in pack if span.pictures)[:1], 1)


def test_one_rank_alone_makes_the_same_step(data: Path, plain: list[Any]) -> None:
    alone = run_ranks(1, _step, configuration(data))[0]
    assert alone[0] == pytest.approx(plain[0][0], abs=2e-6)
    assert alone[1] == pytest.approx(plain[0][1], rel=3e-5)
    assert sum(alone[2]) == sum(plain[1][2])
