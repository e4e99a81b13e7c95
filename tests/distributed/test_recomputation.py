"""What is computed again in the backward pass changes no loss and no gradient. fp32, so to float tolerance."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_vlm.config.run import RunConfig
from megatron_vlm.training.engine import unwrap
from megatron_vlm.training.loop import Run
from tests.distributed.ranks import run_ranks
from tests.distributed.tiny_run import PP2, TP2, configuration, one_step

pytestmark = pytest.mark.distributed

FULL, SELECTIVE = {"recompute": "full"}, {"recompute": "selective"}
#: pictures in every step, and the encoder trained
STAGES = {"curriculum.stages": "[{sources: {text: 0.5, captions: 0.5}}]"}
#: words alone, and nothing trained but low-rank updates
LORA = {"curriculum.stages": "[{sources: {text: 1.0}, freeze: [vision, projector]}]", "model.lora": "{rank: 4, alpha: 32}"}

Kinds = dict[str, tuple[dict[str, Any], dict[str, Any]]]
#: name -> (parallel, fields)
NOTHING: Kinds = {"nothing": ({}, {})}
HERE: Kinds = {
    "full, block": (FULL, {"performance.recompute_method": "block", "performance.recompute_layers": 2}),
    "by module": (SELECTIVE, {"performance.recompute_modules": "[core_attn, layernorm, mlp]"}),
}
MORE: Kinds = {
    "full, each layer": (FULL, {}),
    "full, two layers a unit": (FULL, {"performance.recompute_layers": 2}),
    "full, block of one": (FULL, {"performance.recompute_method": "block"}),
    "attention alone": (SELECTIVE, {}),
    "norms alone": (SELECTIVE, {"performance.recompute_modules": "[layernorm]"}),
    "mlp alone": (SELECTIVE, {"performance.recompute_modules": "[mlp]"}),
    "the encoder": ({}, {"performance.recompute_vision": True}),
    "the encoder and all layers": (FULL, {"performance.recompute_vision": True}),
}
LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "tp2 + sp": (2, {**TP2, "sequence_parallel": True}),
    "pp2": (2, PP2),
    "dp2 overlapped": (2, {"overlap_grad_reduce": True, "overlap_param_gather": True}),
}


def _layer_passes(run: Run) -> list[int]:
    """Forward passes of attention, feed-forward and norm of the first language layer, and of an encoder layer."""
    model, counts = unwrap(run.engine.chunks[0]), [0, 0, 0, 0]

    def counted(place: int, module: torch.nn.Module) -> None:
        def count(*_: object) -> None:
            counts[place] += 1

        module.register_forward_pre_hook(count)

    layer = model.language_model.decoder.layers[0]
    for place, module in enumerate((layer.self_attention.core_attention, layer.mlp, layer.pre_mlp_layernorm)):
        counted(place, module)
    if model.vision is not None:
        counted(3, model.vision.decoder.layers[0].mlp)
    return counts


def _runs(configs: list[RunConfig], count: int) -> list[tuple[list[int], list[dict[str, float]]]]:
    """Several runs on one set of ranks, one after another: their layouts are alike."""
    found = []
    for config in configs:
        run = Run(config)
        run._start()
        passes = _layer_passes(run)
        found.append((passes, [one_step(run) for _ in range(count)]))
    return found


def _configurations(data: Path, kinds: Kinds, layout: dict[str, Any], stages: dict[str, Any]) -> list[RunConfig]:
    return [configuration(data, {**layout, **parallel}, **stages, **fields) for parallel, fields in kinds.values()]


#: kind -> times that attention, feed-forward, norm and encoder are computed
TIMES = {
    "by module": (2, 2, 2, 1),
    "attention alone": (2, 1, 1, 1),
    "norms alone": (1, 1, 2, 1),
    "mlp alone": (1, 2, 1, 1),
    "the encoder": (1, 1, 1, 2),
    "the encoder and all layers": (2, 2, 2, 2),
}


def _compare(names: Iterable[str], results: list[tuple[list[int], list[dict[str, float]]]]) -> None:
    """The first of `results` is without recomputation."""
    (once, plain), *others = results
    assert once[0] > 0
    assert all(step["grad_norm"] > 0.01 for step in plain)
    for name, (passes, found) in zip(names, others, strict=True):
        times = TIMES.get(name, (2, 2, 2, 1))
        assert passes == [n * time for n, time in zip(once, times, strict=True)], name
        for ours, theirs in zip(found, plain, strict=True):
            assert ours.keys() == theirs.keys()
            for key, value in theirs.items():
                tolerance = 3e-5 * value if key == "grad_norm" else 2e-6
                assert abs(ours[key] - value) <= tolerance, (name, key, ours[key], value)


@pytest.fixture(scope="module")
def alone(data: Path) -> Any:
    whole = _configurations(data, {**NOTHING, **HERE}, {}, STAGES)
    frozen = [configuration(data, kind, **LORA) for kind in ({}, FULL)]
    return run_ranks(1, _runs, [*whole, *frozen], 1)[0]


def test_losses_and_gradient_norms_are_those_without(alone: Any) -> None:
    assert "caption" in alone[0][1][0]
    _compare(HERE, alone[:-2])


def test_low_rank_updates_of_a_frozen_model_are_trained(alone: Any) -> None:
    """Words of a frozen embedding ask for no gradient, and without one what is computed again would have none."""
    _compare(["full, low-rank updates"], alone[-2:])


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_kind_in_every_layout(layout: str, data: Path) -> None:
    kinds = {**NOTHING, **HERE, **MORE}
    ranks, parallel = LAYOUTS[layout]
    for results in run_ranks(ranks, _runs, _configurations(data, kinds, parallel, STAGES), 2):
        _compare(list(kinds)[1:], results)
