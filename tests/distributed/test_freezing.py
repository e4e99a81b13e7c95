"""What a stage freezes has no gradient and no optimiser state; what goes on keeps its state to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_vlm.errors import ConfigError
from megatron_vlm.training.loop import Run
from megatron_vlm.training.optimizer import read_state
from megatron_vlm.training.step import train_step
from tests.distributed.ranks import run_ranks
from tests.distributed.tiny_run import PP2, configuration, next_batches, one_step, parameters, plan_from

pytestmark = pytest.mark.distributed


def _over_the_border(config: Any) -> dict[str, Any]:
    run = Run(config)
    run._start()
    first = parameters(run)
    one_step(run), one_step(run)
    engine = run.engine
    frozen = [p for n, p in engine.ddp[0].named_parameters() if "vision." in n or "projector." in n]
    before = read_state(engine.optimizer, engine.ddp)
    second = parameters(run)
    run._enter_stage()
    after = read_state(engine.optimizer, engine.ddp)
    counts = {engine.updates.made, *(group["step"] for group in engine.optimizer.groups if group["params"])}
    carried = all((after[n][k] == v).all() for n, state in before.items() for k, v in state.items())
    fresh = [n for n in after if n not in before]
    zeros = all(not after[n]["exp_avg"].any() for n in fresh)
    one_step(run)
    third = parameters(run)
    is_encoder = lambda n: ".vision." in n or ".projector." in n  # noqa: E731
    return {
        "no_gradient": all(not hasattr(p, "main_grad") and not p.requires_grad for p in frozen),
        "no_state": not any(is_encoder("." + n) for n in before),
        "unchanged": all(np.array_equal(first[n], second[n]) for n in first if is_encoder("." + n)),
        "trained": sum(not np.array_equal(second[n], third[n]) for n in first if is_encoder("." + n)),
        "carried": carried and zeros and counts == {2},
    }


@pytest.mark.parametrize("parallel", [{}, {"use_distributed_optimizer": False}, {"overlap_grad_reduce": True}])
def test_over_the_border(parallel: dict[str, Any], data: Path) -> None:
    for result in run_ranks(2, _over_the_border, configuration(data, parallel)):
        assert result["no_gradient"]
        assert result["no_state"]
        assert result["unchanged"]
        assert result["carried"]
        assert result["trained"] > 20


def _without_pictures(config: Any) -> tuple[bool, bool]:
    run = Run(config)
    run._start()
    run.step = 2
    one_step(run)  # moments are warm
    plan_from(run, 0)  # text only, while encoder and projector are trained
    batches, shape = next_batches(run)
    before = parameters(run)
    train_step(run.engine, batches, run.topology, 1e-3)
    after = parameters(run)
    still = [np.array_equal(before[n], after[n]) for n in before if "vision." in n or "projector." in n]
    moved = [not np.array_equal(before[n], after[n]) for n in before if "language_model." in n]
    return all(still) and shape.pictures == 0, all(moved)


@pytest.mark.parametrize("overlap", [False, True])
def test_a_step_without_pictures_leaves_the_encoder(overlap: bool, data: Path) -> None:
    """No hang under overlapped reduction, no decay, no momentum."""
    config = configuration(data, {"overlap_grad_reduce": overlap})
    assert run_ranks(2, _without_pictures, config) == [(True, True)] * 2


def _align(config: Any) -> tuple[list[float], int]:
    run = Run(config)
    run._start()
    before = parameters(run)
    losses = [one_step(run)["loss"] for _ in range(3)]
    after = parameters(run)
    changed = [n for n in before if not np.array_equal(before[n], after[n])]
    assert all("projector." in n for n in changed), changed
    return losses, len(changed)


@pytest.mark.parametrize("parallel", [{}, PP2])
def test_align_only_stage(parallel: dict[str, Any], data: Path) -> None:
    stages = "[{name: align, sources: {captions: 1.0}, freeze: [language, vision]}]"
    config = configuration(data, parallel, **{"curriculum.stages": stages})
    results = run_ranks(2, _align, config)
    assert results[0][0] == results[1][0]
    assert results[0][1] == 4


def _refusal(config: Any) -> str:
    try:
        Run(config)
    except ConfigError as refusal:
        return str(refusal)
    return "taken"


@pytest.mark.parametrize(
    ("stage", "reason"),
    [
        # each on one of the two stages of the pipeline alone
        ("freeze: [language_model.embedding., language_model.output_layer., vision.decoder.layers.1.]", "taken"),
        (
            "freeze: [language_model.decoder.layers.0.mlp.linear_fc9., vision]",
            "freeze: 'language_model.decoder.layers.0.mlp.linear_fc9.' begins the name of no parameter of this model",
        ),
        # of other encoders
        ("freeze: [vision.class_token]", "'vision.class_token' begins the name of no parameter of this model; leave it out"),
        (
            "freeze: [language_model.embedding, language_model.output, language_model.decoder.layers, vision, projector, "
            "language_model.decoder.final_layernorm.weight]",
            "train nothing",
        ),
        ("freeze: [language]", "taken"),
    ],
)
def test_entries_are_looked_for_on_every_rank(stage: str, reason: str, data: Path) -> None:
    stages = f"[{{name: a, sources: {{captions: 1.0}}, {stage}}}]"
    for found in run_ranks(2, _refusal, configuration(data, PP2, **{"curriculum.stages": stages})):
        assert reason in found


def test_pictures_alone_are_not_trained_on_text_alone(data: Path) -> None:
    stages = "[{name: a, until: 0.5, sources: {text: 1.0}, freeze: [language]}, {name: b, sources: {text: 1.0}}]"
    (found,) = run_ranks(1, _refusal, configuration(data, **{"curriculum.stages": stages}))
    assert "curriculum.stages.0 (a).freeze: [language] leaves the pictures' way alone to be trained, and no source" in found
    assert "stages.1" not in found
