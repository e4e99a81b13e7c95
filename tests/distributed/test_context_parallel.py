"""Ranks that share each row: losses, gradients, scores and checkpoints are those of a run whose ranks do not.

Tolerances as in test_layouts and test_gradients, but that losses may differ by 5e-6: attention adds in another order too
(seen: 2.4e-6 of 8.1, at the fourth step).
"""

from __future__ import annotations

import types
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch.distributed as dist
from megatron.core import parallel_state

from megatron_vlm.config.run import RunConfig
from megatron_vlm.models import context_row, picture_encoding
from megatron_vlm.parallel import picture_shares
from megatron_vlm.planning.communication import context_layer_bytes, context_row_bytes
from megatron_vlm.planning.layout import layout_of
from megatron_vlm.training.loop import Run
from megatron_vlm.training.step import train_step
from tests.distributed.ranks import run_ranks
from tests.distributed.test_gradients import FIXED, _one_rank, _whole, _worst
from tests.distributed.test_some_pictures import step_of_one_picture
from tests.distributed.tiny_run import (
    PP2,
    TP2,
    assert_equal_steps,
    assert_goes_on,
    configuration,
    next_batches,
    one_step,
    steps,
)

pytestmark = pytest.mark.distributed

CP2 = {"context_parallel_size": 2}
FIRST, ALL = {"vision": "data_first_stage"}, {"vision": "data_all_stages"}
OVERLAPPED = {"overlap_grad_reduce": True, "overlap_param_gather": True}
LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "cp2": (2, CP2),
    "cp2 x tp2 + sp": (4, {**CP2, **TP2, "sequence_parallel": True}),
    "cp2 x pp2, all stages encode": (4, {**CP2, **PP2, **ALL}),
    "cp2 x tp2, first stage encodes": (4, {**CP2, **TP2, **FIRST}),
    "cp4": (4, {"context_parallel_size": 4}),
}
MORE: dict[str, tuple[int, dict[str, Any]]] = {
    "cp2 x dp2, overlapped": (4, {**CP2, **OVERLAPPED}),
    "cp2, plain optimiser": (2, {**CP2, "use_distributed_optimizer": False}),
    "cp2 x pp2 x vp2": (4, {**CP2, **PP2, "virtual_pipeline_model_parallel_size": 2}),
    "cp2 x tp2, first stage encodes, overlapped": (4, {**CP2, **TP2, **FIRST, **OVERLAPPED}),
    "cp2 x dp2, all stages encode, overlapped": (4, {**CP2, **ALL, "overlap_grad_reduce": True}),
    "cp2, full recompute": (2, {**CP2, "recompute": "full"}),
    "cp2, selective recompute": (2, {**CP2, "recompute": "selective"}),
}


@pytest.fixture(scope="module")
def reference(data: Path) -> list[dict[str, float]]:
    return run_ranks(1, steps, configuration(data), 5)[0]


@pytest.mark.parametrize("name", [*LAYOUTS, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE)])
def test_losses_and_gradient_norms_equal(name: str, data: Path, reference: list[dict[str, float]]) -> None:
    ranks, parallel = (LAYOUTS | MORE)[name]
    results = run_ranks(ranks, steps, configuration(data, parallel), 5)
    assert all(result == results[0] for result in results), "ranks report different numbers"
    assert_equal_steps(results[0], reference, loss=5e-6)


#: many pictures in each row, so that each rank has some of the others' rows in its part
PICTURED = {**FIXED, "curriculum.stages": "[{name: both, sources: {text: 0.3, captions: 0.7}, measure: tokens}]"}


@pytest.fixture(scope="module")
def alone(data: Path) -> dict[str, np.ndarray]:
    return _whole(run_ranks(1, _one_rank, configuration(data, **PICTURED)))


#: without the distributed optimiser, of which each rank has a part of the sums
WHOLE = {"use_distributed_optimizer": False}


@pytest.mark.parametrize(
    ("ranks", "parallel"),
    [
        (2, CP2),
        (4, {**CP2, **TP2, **FIRST, "sequence_parallel": True}),
        pytest.param(4, {**CP2, **PP2, **ALL}, marks=pytest.mark.slow),
        pytest.param(4, {"context_parallel_size": 4}, marks=pytest.mark.slow),
    ],
    ids=["cp2", "cp2 x tp2 + sp, first stage", "cp2 x pp2, all stages", "cp4"],
)
def test_every_gradient_is_the_same(ranks: int, parallel: dict[str, Any], data: Path, alone: dict[str, np.ndarray]) -> None:
    found = run_ranks(ranks, _one_rank, configuration(data, {**parallel, **WHOLE}, **PICTURED))
    assert _worst(_whole(found), alone) < 2e-6


KINDS: dict[str, dict[str, Any]] = {
    "pictures of their own aspect, frozen encoder": {
        "data.pictures.resize": "native",
        "curriculum.stages": "[{sources: {text: 0.5, captions: 0.5}, freeze: [vision]}]",
    },
    "pictures that teach nothing": {
        "curriculum.stages": "[{sources: {text: 0.5, captions: 0.5}, freeze: [vision, projector]}]"
    },
    "labels with factors": {
        "curriculum.stages": "[{sources: {text: 0.5, captions: 0.5}, loss_weights: {caption: 0.25}}]",
    },
    "rows of one document": {"curriculum.stages": "[{sources: {text: 1.0}}]", "schedule.micro_batch_size": 1},
}


@pytest.mark.parametrize("kind", [pytest.param(name, marks=pytest.mark.slow) for name in KINDS])
@pytest.mark.parametrize("parallel", [{**CP2, **FIRST, **TP2}, {**CP2, **ALL, **PP2}], ids=["first", "all"])
def test_what_a_row_may_hold(kind: str, parallel: dict[str, Any], data: Path) -> None:
    alone = run_ranks(1, steps, configuration(data, **KINDS[kind]), 3)[0]
    assert_equal_steps(run_ranks(4, steps, configuration(data, parallel, **KINDS[kind]), 3)[0], alone, loss=5e-6)


def _losses(config: RunConfig) -> dict[str, float]:
    run = Run(config)
    run._start()
    return run.validation.measure(run.engine, config.shape_of(0))


@pytest.mark.parametrize("parallel", [CP2, pytest.param({**CP2, **PP2}, marks=pytest.mark.slow)], ids=["cp2", "cp2 x pp2"])
def test_held_out_losses_are_the_same(parallel: dict[str, Any], data: Path) -> None:
    fields = {
        "data.validation": f"{{text: '{data / 'text'}', captions: '{data / 'captions'}'}}",
        "data.validation_documents": 5,
    }
    alone = run_ranks(1, _losses, configuration(data, **fields))[0]
    assert alone.keys() == {"text", "captions"}
    for found in run_ranks(
        2 * parallel.get("pipeline_model_parallel_size", 1), _losses, configuration(data, parallel, **fields)
    ):
        assert found == pytest.approx(alone, abs=2e-5)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((2, CP2), (1, {})),
        pytest.param((2, {}), (2, CP2), marks=pytest.mark.slow),
        pytest.param((4, {**CP2, **TP2}), (4, {**CP2, **PP2, **ALL}), marks=pytest.mark.slow),
    ],
)
def test_a_checkpoint_goes_on_with_other_ranks(
    before: tuple[int, dict[str, Any]],
    after: tuple[int, dict[str, Any]],
    data: Path,
    tmp_path: Path,
    reference: list[dict[str, float]],
) -> None:
    """Weights, moments and the place in the data: saved at step 3, its last two steps are the whole run's."""
    assert_goes_on(before, after, data, tmp_path, reference)


def _forget_what_began_before(core: Any) -> None:
    """A piece's first document, though it began in another piece, attends to what it has in this one alone."""
    real = context_row.cut_row

    def cut(lengths: Any, count: int) -> Any:
        size = sum(lengths) // count
        ends = sorted({*accumulate(lengths), *range(size, sum(lengths), size)})
        return real([end - begin for begin, end in pairwise([0, *ends])], count)

    context_row.cut_row = cut


def _keep_own_gradients(core: Any) -> None:
    """Gradients of keys and values stay on the rank that made them."""

    def keep(own: Any, whole: Any, group: Any) -> None:
        own.copy_(whole.chunk(group.size())[group.rank()])

    context_row.dist = types.SimpleNamespace(**{**vars(dist), "reduce_scatter_tensor": keep})  # type: ignore[attr-defined]


def _keep_gradients_of_rows(core: Any) -> None:
    """The same of picture rows."""
    picture_encoding.summed_rows = picture_encoding.gathered_rows  # type: ignore[assignment]


@pytest.mark.parametrize("mutation", [_forget_what_began_before, _keep_own_gradients, _keep_gradients_of_rows])
def test_a_fault_in_what_is_shared_is_seen(mutation: Any, data: Path, alone: dict[str, np.ndarray]) -> None:
    shared = configuration(data, {**CP2, **WHOLE}, **PICTURED)
    assert _worst(_whole(run_ranks(2, _one_rank, shared, mutation)[:1]), alone) > 1e-3


@pytest.mark.parametrize("vision", [{}, pytest.param(FIRST, marks=pytest.mark.slow), ALL], ids=["tensor", "first", "all"])
def test_pictures_in_the_last_micro_batch_alone(vision: dict[str, Any], data: Path) -> None:
    """Fewer than there are ranks: some encode nothing, and come to every meeting all the same."""
    loss, norm, pictures, _ = run_ranks(1, step_of_one_picture, configuration(data))[0]
    assert pictures == [0, 0, 0, 1]
    shared = {"context_parallel_size": 4, "overlap_grad_reduce": True, "overlap_param_gather": True, **vision}
    for found in run_ranks(4, step_of_one_picture, configuration(data, shared)):
        assert found[2] == pictures
        assert found[:2] == (pytest.approx(loss, abs=5e-6), pytest.approx(norm, rel=3e-5))


def _counted(config: RunConfig) -> dict[str, float]:
    """Bytes through this rank in the third step, the first with pictures, beside those of the planner."""
    run = Run(config)
    run._start()
    for _ in range(2):
        one_step(run)
    run._enter_stage()
    batches, _ = next_batches(run)
    group, found = parallel_state.get_context_parallel_group(), dict.fromkeys(("gathered", "scattered", "rows"), 0.0)
    share = (group.size() - 1) / group.size()

    def counting(name: str, real: Any, whole: int) -> Any:
        def call(output: Any, own: Any, group: Any, **options: Any) -> Any:
            if group is parallel_state.get_context_parallel_group():
                found[name] += (output, own)[whole].nbytes * share
            return real(output, own, group=group, **options)

        return call

    counted = context_row.dist = types.SimpleNamespace(**vars(dist))  # type: ignore[attr-defined]
    counted.all_gather_into_tensor = counting("gathered", dist.all_gather_into_tensor, 0)
    counted.reduce_scatter_tensor = counting("scattered", dist.reduce_scatter_tensor, 1)
    counted = picture_shares.dist = types.SimpleNamespace(**vars(dist))  # type: ignore[attr-defined]
    counted.all_gather_into_tensor = counting("rows", dist.all_gather_into_tensor, 0)
    counted.reduce_scatter_tensor = counting("rows", dist.reduce_scatter_tensor, 1)
    train_step(run.engine, batches, run.topology, 0.0)
    layout, positions = layout_of(config, run.topology.world_size, "fp32"), batches[0].tokens.size(1)
    layer = context_layer_bytes(config.model, layout, positions // layout.context, 4)
    rows = [context_row_bytes(config.model, layout, batch.image_rows, 4) for batch in batches]
    return {
        **found,
        "planned layers": len(batches) * config.model.language.num_layers * layer,
        "planned rows": 2 * sum(rows),
        "padding": 2 * len(rows) * group.size() * config.model.image_tokens * config.model.language.hidden_size * 4.0,
    }


@pytest.mark.parametrize(("ranks", "parallel"), [(2, CP2), pytest.param(4, {**CP2, **TP2}, marks=pytest.mark.slow)])
def test_as_many_bytes_are_exchanged_as_the_planner_says(ranks: int, parallel: dict[str, Any], data: Path) -> None:
    for told in run_ranks(ranks, _counted, configuration(data, parallel)):
        assert told["gathered"] == told["scattered"] == told["planned layers"] > 0
        assert 0 < told["planned rows"] <= told["rows"] <= told["planned rows"] + told["padding"]
