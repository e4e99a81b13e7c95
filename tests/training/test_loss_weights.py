"""Weights of the modalities' losses: their ratio alone counts, and what has none is not learnt."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_vlm.ops.assemble import MODALITY_TEXT
from megatron_vlm.training.loop import Run
from megatron_vlm.training.step import WEIGHT_UNIT, train_step, whole_weights
from tests.distributed.conftest import data  # noqa: F401
from tests.distributed.ranks import run_ranks
from tests.distributed.tiny_run import configuration, next_batches, plan_from


@pytest.mark.parametrize("weights", [{}, {"text": 1.0}, {"text": 2.0, "caption": 2.0}, {"caption": 0.0, "text": 0.0}])
def test_alike_weights_are_none(weights: dict[str, float]) -> None:
    assert whole_weights(weights) is None


def test_only_ratios_count() -> None:
    expected = {"text": WEIGHT_UNIT // 4, "caption": WEIGHT_UNIT}
    assert whole_weights({"caption": 4.0}) == whole_weights({"text": 0.5, "caption": 2.0}) == expected
    assert whole_weights({"text": 0.0}) == {"text": 0, "caption": WEIGHT_UNIT}


def _gradients(
    config: Any, weights: dict[str, float], keep: dict[str, float]
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """After one step with pictures; `keep` scales the loss mask of a modality beforehand."""
    stages = tuple(replace(stage, loss_weights=weights) for stage in config.curriculum.stages)
    run = Run(replace(config, curriculum=replace(config.curriculum, stages=stages)))
    run._start()
    run.step = 2
    run._enter_stage()
    plan_from(run, 2)
    batches, _ = next_batches(run)
    for batch in batches:
        for name, factor in keep.items():
            chosen = batch.label_modality == MODALITY_TEXT
            batch.loss_mask[chosen if name == "text" else ~chosen] *= factor
    result = train_step(run.engine, batches, run.topology, 0.0, 2)
    grads = {
        f"{number}.{name}": parameter.main_grad.numpy().copy()
        for number, chunk in enumerate(run.engine.ddp)
        for name, parameter in chunk.named_parameters()
        if parameter.requires_grad
    }
    return grads, result.losses


@pytest.mark.distributed
@pytest.mark.parametrize("world", [1, 2])
def test_a_weight_of_zero_is_a_mask(world: int, data: Path) -> None:  # noqa: F811
    config = configuration(data, **{"optimizer.clip_grad": 1e9})
    weighted = run_ranks(world, _gradients, config, {"text": 0.0}, {})
    masked = run_ranks(world, _gradients, config, {}, {"text": 0.0})
    plain = run_ranks(world, _gradients, config, {}, {})
    assert weighted[0][1] == plain[0][1], "what is reported has no weights"
    for name, value in masked[0][0].items():
        np.testing.assert_allclose(weighted[0][0][name], value, rtol=1e-4, atol=1e-7, err_msg=name)


@pytest.mark.distributed
def test_a_gradient_is_the_weighted_mean_of_those_of_the_modalities(data: Path) -> None:  # noqa: F811
    """With w for captions: (n_text g_text + w n_caption g_caption) / (n_text + w n_caption)."""
    config = configuration(data, **{"optimizer.clip_grad": 1e9})
    (((text, _),), ((caption, _),), ((mixed, _),), ((plain, _),)) = (
        run_ranks(1, _gradients, config, weights, {}) for weights in ({"caption": 0.0}, {"text": 0.0}, {"caption": 4.0}, {})
    )
    name = max(plain, key=lambda n: plain[n].size)
    # plain = (1 - a) text + a caption, which gives the share a of captions among the tokens
    direction = caption[name] - text[name]
    a = float(((plain[name] - text[name]) * direction).sum() / (direction * direction).sum())
    assert 0.05 < a < 0.95
    share = 4 * a / (1 + 3 * a)
    for key in plain:
        expected = (1 - share) * text[key] + share * caption[key]
        np.testing.assert_allclose(mixed[key], expected, rtol=1e-3, atol=2e-6, err_msg=key)
