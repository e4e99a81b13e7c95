"""Where pictures are encoded changes no number: tensor-parallel, shared out on the first stage, or on all stages.

Tolerances as in test_layouts: the same sums in another order.
"""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from megatron_vlm.config.checks import problems
from megatron_vlm.config.run import RunConfig
from megatron_vlm.parallel import picture_shares
from megatron_vlm.planning.communication import encoder_layer_bytes, picture_row_bytes
from megatron_vlm.planning.layout import layout_of
from megatron_vlm.planning.parameters import rank_parameters
from megatron_vlm.training.engine import unwrap
from megatron_vlm.training.loop import Run
from megatron_vlm.training.step import train_step
from tests.distributed.ranks import run_ranks
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

FIRST, ALL = {"vision": "data_first_stage"}, {"vision": "data_all_stages"}
LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "first stage, tp2 x dp2, overlapped": (4, {**TP2, **FIRST, "overlap_grad_reduce": True, "overlap_param_gather": True}),
    "all stages, tp2 x pp2 + sp": (4, {**TP2, **PP2, **ALL, "sequence_parallel": True}),
}
MORE: dict[str, tuple[int, dict[str, Any]]] = {
    "first stage, tp2 + sp": (2, {**TP2, **FIRST, "sequence_parallel": True}),
    "first stage, tp2 x pp2": (4, {**TP2, **PP2, **FIRST}),
    "first stage, plain optimiser": (2, {**TP2, **FIRST, "use_distributed_optimizer": False}),
    "all stages, pp2 x dp2, overlapped": (4, {**PP2, **ALL, "overlap_grad_reduce": True, "overlap_param_gather": True}),
    "all stages, pp2": (2, {**PP2, **ALL}),
    "all stages, tp2": (2, {**TP2, **ALL}),
    "all stages, pp2 x vp2 x dp2, overlapped": (
        4,
        {**PP2, **ALL, "virtual_pipeline_model_parallel_size": 2, "overlap_grad_reduce": True},
    ),
    "all stages, plain optimiser": (2, {**PP2, **ALL, "use_distributed_optimizer": False}),
}


@pytest.fixture(scope="module")
def reference(data: Path) -> list[dict[str, float]]:
    return run_ranks(1, steps, configuration(data), 5)[0]


@pytest.mark.parametrize("name", [*LAYOUTS, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE)])
def test_losses_and_gradient_norms_equal(name: str, data: Path, reference: list[dict[str, float]]) -> None:
    ranks, parallel = (LAYOUTS | MORE)[name]
    results = run_ranks(ranks, steps, configuration(data, parallel), 5)
    assert all(result == results[0] for result in results), "ranks report different numbers"
    assert_equal_steps(results[0], reference)


@pytest.mark.slow
@pytest.mark.parametrize("parallel", [{**TP2, **FIRST}, {**PP2, **ALL}])
def test_pictures_of_their_own_aspect_and_a_frozen_encoder(parallel: dict[str, Any], data: Path) -> None:
    fields: dict[str, Any] = {
        "data.pictures.resize": "native",
        "curriculum.stages": "[{sources: {text: 0.5, captions: 0.5}, freeze: [vision]}]",
    }
    alone = run_ranks(1, steps, configuration(data, **fields), 3)[0]
    assert_equal_steps(run_ranks(2, steps, configuration(data, parallel, **fields), 3)[0], alone)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((2, {**PP2, **ALL}), (1, {})),
        pytest.param((2, TP2), (2, {**TP2, **FIRST}), marks=pytest.mark.slow),
        pytest.param((4, {**TP2, **FIRST}), (4, {**TP2, **PP2, **ALL}), marks=pytest.mark.slow),
    ],
)
def test_a_checkpoint_goes_on_under_another_placement(
    before: tuple[int, dict[str, Any]],
    after: tuple[int, dict[str, Any]],
    data: Path,
    tmp_path: Path,
    reference: list[dict[str, float]],
) -> None:
    """Weights and moments: saved at step 3, where pictures have been trained on, its last two steps are the whole run's."""
    assert_goes_on(before, after, data, tmp_path, reference)


class _Counted(types.SimpleNamespace):
    """torch.distributed, whose collectives say how many bytes go through each member of a ring."""

    def __init__(self) -> None:
        super().__init__(gathered=0.0, scattered=0.0, reduced=0.0)

    def __getattr__(self, name: str) -> Any:
        return getattr(dist, name)

    def all_gather_into_tensor(self, output: torch.Tensor, own: torch.Tensor, group: dist.ProcessGroup) -> None:
        self.gathered += output.nbytes * (group.size() - 1) / group.size()
        dist.all_gather_into_tensor(output, own, group=group)

    def scatter(self, own: torch.Tensor, shares: list[torch.Tensor] | None, src: int, group: dist.ProcessGroup) -> None:
        self.scattered += own.nbytes * (group.size() - 1)
        dist.scatter(own, shares, src=src, group=group)

    def all_reduce(self, values: torch.Tensor, group: dist.ProcessGroup) -> None:
        self.reduced += 2 * values.nbytes * (group.size() - 1) / group.size()
        dist.all_reduce(values, group=group)


def _counted(config: RunConfig) -> dict[str, float]:
    """Bytes of the third step, the first with pictures, beside those of the planner."""
    run = Run(config)
    run._start()
    for _ in range(2):
        one_step(run)
    run._enter_stage()
    batches, _ = next_batches(run)
    counted = picture_shares.dist = _Counted()  # type: ignore[attr-defined,assignment]
    result = train_step(run.engine, batches, run.topology, 0.0)
    assert "caption" in result.losses
    layout = layout_of(config, run.topology.world_size, "fp32")
    model = unwrap(run.engine.chunks[0])
    rows = sum(batch.image_rows for batch in batches)
    own = {
        name: sum(p.numel() for p in module.parameters()) if module is not None else 0
        for name, module in (("vision", model.vision), ("projector", model.projector))
    }
    planned = rank_parameters(config.model, run._vocab, layout, run.topology.pipeline_rank)
    return {
        "gathered": counted.gathered,
        "scattered": counted.scattered,
        "reduced": counted.reduced,
        "planned": picture_row_bytes(config.model, layout, rows, 4),
        "padding": len(batches) * config.model.image_tokens * config.model.language.hidden_size * 4 * layout.tensor * 2.0,
        "parameters": own["vision"] + own["projector"],
        "planned parameters": planned["vision"] + planned["projector"],
    }


@pytest.mark.parametrize(
    ("ranks", "parallel"), [(2, {**PP2, **ALL}), pytest.param(2, {**TP2, **FIRST}, marks=pytest.mark.slow)]
)
def test_rows_alone_are_exchanged_and_as_many_as_the_planner_says(ranks: int, parallel: dict[str, Any], data: Path) -> None:
    for told in run_ranks(ranks, _counted, configuration(data, parallel)):
        assert told["planned"] > 0
        assert told["planned"] <= told["gathered"] <= told["planned"] + told["padding"]
        # gradients of rows go back by a scatter between stages, and stay where they are between tensor-parallel ranks
        assert told["scattered"] == (told["gathered"] if parallel["vision"] == "data_all_stages" else 0)
        assert told["parameters"] == told["planned parameters"]
        assert told["reduced"] == 2 * 4 * told["parameters"] * (ranks - 1) / ranks


def _tensor_parallel_bytes(config: RunConfig) -> tuple[float, float]:
    """Through each rank, of the encoder's layers for two pictures, forward: counted, and by the planner."""
    run = Run(config)
    run._start()
    model, vision, counted = unwrap(run.engine.chunks[0]), config.model.vision, _Counted()
    original, tokens = dist.all_reduce, 2 * vision.patches

    def reduce(values: torch.Tensor, *args: Any, group: dist.ProcessGroup, **options: Any) -> Any:
        counted.reduced += 2 * values.nbytes * (group.size() - 1) / group.size()
        return original(values, *args, group=group, **options)

    dist.all_reduce = torch.distributed.all_reduce = reduce
    assert model.vision is not None
    model.vision(torch.zeros(2, vision.image_size, vision.image_size, 3, dtype=torch.uint8))
    layout = layout_of(config, run.topology.world_size, "fp32")
    return counted.reduced, vision.num_layers * encoder_layer_bytes(vision, layout, tokens, 4)


def test_a_split_encoder_exchanges_hidden_states_as_the_planner_says(data: Path) -> None:
    for counted, planned in run_ranks(2, _tensor_parallel_bytes, configuration(data, TP2)):
        assert counted == planned > 0


def test_heads_that_do_not_go_evenly_are_refused_only_where_they_are_split(data: Path) -> None:
    odd = {"model.vision": "{num_layers: 1, hidden_size: 96, num_attention_heads: 3, ffn_hidden_size: 96}"}
    said = list(problems(configuration(data, TP2, **odd), world_size=2))
    assert any("does not divide model.vision.num_attention_heads 3" in problem for problem in said)
    assert not list(problems(configuration(data, {**TP2, **FIRST}, **odd), world_size=2))
