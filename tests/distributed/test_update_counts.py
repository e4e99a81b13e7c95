"""Adam's counts of updates do not depend on which rank has something to update; each group has the age of its moments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_vlm.training.engine import unwrap
from megatron_vlm.training.loop import Run
from megatron_vlm.training.optimizer import read_state
from tests.distributed.ranks import run_ranks
from tests.distributed.tiny_run import PP2, assert_equal_steps, configuration, one_step, steps, steps_and_save

pytestmark = pytest.mark.distributed

ALIGN = (
    "[{name: text, until_steps: 2, sources: {text: 1.0}, freeze: [vision, projector]}, "
    "{name: align, until_steps: 4, sources: {captions: 1.0}, freeze: [language, vision]}, "
    "{name: images, sources: {text: 1.0, captions: 1.0}, freeze: [vision]}]"
)
LATE_PICTURES = "[{name: text, until_steps: 3, sources: {text: 1.0}}, {name: images, sources: {text: 1.0, captions: 1.0}}]"
#: half of all parameters are the encoder's, so one of two data-parallel ranks has no other one
LARGE_ENCODER = {
    "model.language": "{num_layers: 1, hidden_size: 32, num_attention_heads: 4, num_query_groups: 4, ffn_hidden_size: 32}",
    "model.vision": "{num_layers: 6, hidden_size: 128}",
}


def _case(data: Path, stages: str, parallel: dict[str, Any] | None = None, **fields: Any) -> Any:
    common = {"curriculum.stages": stages, "schedule.train_steps": 8, "schedule.lr": 3e-3}
    return configuration(data, parallel, **{**common, **fields})


@pytest.mark.parametrize("distributed_optimizer", [True, False])
def test_a_pipeline_rank_that_trains_nothing_for_a_stage(distributed_optimizer: bool, data: Path, tmp_path: Path) -> None:
    """Losses of one rank; the same when it goes on from within that stage, whose checkpoint it has no part of."""
    own = {"use_distributed_optimizer": distributed_optimizer}
    whole = run_ranks(1, steps, _case(data, ALIGN, own), 7)[0]
    config = _case(data, ALIGN, {**PP2, **own}, **{"logging.directory": tmp_path, "checkpoint.resume": "auto"})
    begun = run_ranks(2, steps_and_save, config, 3)[0][0]
    rest = run_ranks(2, steps, config, 4)[0]
    assert_equal_steps([*begun, *rest], whole)


def test_a_data_parallel_rank_with_the_encoder_alone(data: Path, tmp_path: Path) -> None:
    """Steps without pictures leave it out; its count goes on, and is that of checkpoints."""
    whole = run_ranks(1, steps, _case(data, LATE_PICTURES, **LARGE_ENCODER), 6)[0]
    fields = {"logging.directory": tmp_path, "checkpoint.resume": "auto", **LARGE_ENCODER}
    config = _case(data, LATE_PICTURES, **fields)
    begun = run_ranks(2, steps_and_save, config, 4)[0][0]
    rest = run_ranks(2, steps, config, 2)[0]
    assert_equal_steps([*begun, *rest], whole)


def _first_update_of_the_encoder(config: Any) -> float:
    """Of the first step with pictures: the median change of its matrices over the learning rate."""
    run = Run(config)
    run._start()
    while not run.step or run.config.stage_of(run.step) == 0:
        one_step(run)
    (model,) = (unwrap(chunk) for chunk in run.engine.chunks)
    assert model.vision is not None
    weights = [parameter for parameter in model.vision.parameters() if parameter.dim() > 1]
    before = [weight.detach().clone() for weight in weights]
    rate = run.rate(run.step)
    one_step(run)
    moved = [float((now - old).abs().median()) / rate for now, old in zip(weights, before, strict=True)]
    return sorted(moved)[len(moved) // 2]


@pytest.mark.parametrize("beta2", [0.95, pytest.param(0.999, marks=pytest.mark.slow)])
def test_an_encoder_that_waits_for_its_first_picture_begins_as_a_new_one(beta2: float, data: Path) -> None:
    """Adam's first step is one learning rate; steps that left the encoder out do not count."""
    config = _case(data, LATE_PICTURES, **{"optimizer.adam_beta2": beta2, "optimizer.weight_decay": 0})
    assert abs(run_ranks(1, _first_update_of_the_encoder, config)[0] - 1) < 0.02


def _ages(config: Any, count: int) -> tuple[list[dict[str, int]], dict[str, Any]]:
    """Before each of the steps, and the state that the first begins with."""
    run = Run(config)
    run._start()
    moments = read_state(run.engine.optimizer, run.engine.ddp)
    ages = []
    for _ in range(count):
        ages.append(dict(run.engine.updates.ages))
        one_step(run)
    return ages, {name: {key: value.detach().numpy() for key, value in kept.items()} for name, kept in moments.items()}


@pytest.mark.parametrize("distributed_optimizer", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_ages_outlive_a_change_of_the_curriculum(distributed_optimizer: bool, data: Path, tmp_path: Path) -> None:
    """A stage more before, and a layer of its own pattern: parameters keep the age of their moments."""
    own = {"use_distributed_optimizer": distributed_optimizer}
    before = (
        "[{name: text, until_steps: 2, sources: {text: 1.0}, freeze: [vision, projector]}, "
        "{name: images, sources: {text: 1.0, captions: 1.0}}]"
    )
    after = (
        "[{name: warm, until_steps: 1, sources: {text: 1.0}, freeze: [vision, projector]}, "
        "{name: text, until_steps: 2, sources: {text: 1.0}, "
        "freeze: [vision, projector, language_model.decoder.layers.0.]}, "
        "{name: images, sources: {text: 1.0, captions: 1.0}}]"
    )
    fields = {"logging.directory": tmp_path, "checkpoint.resume": "auto"}
    run_ranks(1, steps_and_save, _case(data, before, own, **fields), 5)
    ((kept, state),) = run_ranks(1, _ages, _case(data, before, own, **fields), 2)
    assert kept == [
        {"language:11": 5, "projector:01": 3, "vision:01": 3},
        {"language:11": 6, "projector:01": 4, "vision:01": 4},
    ]
    ((changed, carried),) = run_ranks(1, _ages, _case(data, after, own, **fields), 2)
    assert changed == [
        {"language:101": 5, "language:111": 5, "projector:001": 3, "vision:001": 3},
        {"language:101": 6, "language:111": 6, "projector:001": 4, "vision:001": 4},
    ]
    np.testing.assert_equal(carried, state)


def _frozen_layers(config: Any, count: int) -> tuple[list[dict[str, float]], list[int]]:
    run = Run(config)
    run._start()
    losses = [one_step(run) for _ in range(count)]
    layers = [layer for chunk in run.engine.chunks for layer in unwrap(chunk).language_model.decoder.layers]
    return losses, [layer.layer_number - 1 for layer in layers if not any(p.requires_grad for p in layer.parameters())]


@pytest.mark.parametrize("virtual", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_frozen_layer_is_the_same_one_in_every_layout(virtual: int, data: Path) -> None:
    stages = "[{sources: {text: 1.0, captions: 1.0}, freeze: [vision, language_model.decoder.layers.2.]}]"
    ((whole, alone),) = run_ranks(1, _frozen_layers, _case(data, stages), 3)
    parallel = {**PP2, "virtual_pipeline_model_parallel_size": virtual}
    found = run_ranks(2, _frozen_layers, _case(data, stages, parallel), 3)
    assert alone == [2]
    assert sorted(layer for _, layers in found for layer in layers) == [2]
    assert_equal_steps(found[0][0], whole)


def test_a_tied_embedding_is_frozen_on_both_of_its_stages(data: Path) -> None:
    stages = "[{sources: {text: 1.0, captions: 1.0}, freeze: [language_model.embedding.]}]"
    tied = {"model.language.untie_embeddings": False}
    whole = run_ranks(1, steps, _case(data, stages, **tied), 2)[0]
    assert_equal_steps(run_ranks(2, steps, _case(data, stages, PP2, **tied), 2, timeout=100)[0], whole)
