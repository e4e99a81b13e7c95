"""A stage of other lengths, batches, picture sizes and tokens a picture: the same losses in every layout, with one model.

Two steps of 8 x 128 positions with pictures of 64 pixels, then two of 4 x 192 with pictures of 96 pixels in as many tokens,
then two of 8 x 96 with pictures of 32 pixels. fp32; tolerances as in test_layouts.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from megatron_vlm.parallel import topology
from megatron_vlm.training.engine import Engine
from megatron_vlm.training.step import train_step
from tests.distributed.drawn_batches import TOKENS, micro_batches
from tests.distributed.ranks import run_ranks
from tests.distributed.tiny_run import PP2, TP2, configuration

pytestmark = pytest.mark.distributed

SOURCES = "sources: {text: 0.5, captions: 0.5}, measure: samples"
STAGES = (
    f"[{{name: first, until_steps: 2, {SOURCES}}}, "
    f"{{name: larger, until_steps: 4, {SOURCES}, sequence_length: 192, global_batch_size: 4, micro_batch_size: 1, "
    "image_size: 96, image_pool: 3, loss_weights: {caption: 3.0}}, "
    f"{{name: smaller, {SOURCES}, sequence_length: 96, image_size: 32, freeze: [vision]}}]"
)
#: patches of 8 pixels, folded 2 x 2: 16, then 36 averaged to 4, then 4 rows a picture
FIELDS = {"model.vision.patch_size": 8, "model.projector.pixel_shuffle": 2, "schedule.train_steps": 6}

LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "tp2+sp": (2, {**TP2, "sequence_parallel": True}),
    "pp2": (2, PP2),
    "dp2": (2, {}),
    "dp2 overlapped": (2, {"overlap_grad_reduce": True, "overlap_param_gather": True}),
    "pp2 x vp2": (2, {**PP2, "virtual_pipeline_model_parallel_size": 2}),
    "tp2 x pp2 + sp": (4, {**TP2, **PP2, "sequence_parallel": True}),
}


def _steps(config: Any) -> list[dict[str, float]]:
    top = topology.initialize(config.parallel, config.schedule.seed)
    engine = Engine(config, TOKENS, top)
    results = []
    for step in range(config.total_steps):
        shape = config.shape_of(step)
        engine.enter_stage(shape.stage)
        result = train_step(engine, micro_batches(shape, step, top), top, 1e-3)
        results.append({"loss": result.loss, "grad_norm": result.grad_norm, **result.losses})
    return results


def _configuration(parallel: dict[str, Any] | None = None) -> Any:
    return configuration(Path("nowhere"), parallel, **{"curriculum.stages": STAGES}, **FIELDS)


@pytest.fixture(scope="module")
def reference() -> list[dict[str, float]]:
    return run_ranks(1, _steps, _configuration())[0]


def test_the_shapes_are_those_of_the_stages() -> None:
    shapes = [_configuration().shape_of(step) for step in (0, 2, 4)]
    assert [(s.sequence_length, s.global_batch_size, s.micro_batch_size) for s in shapes] == [
        (128, 8, 2),
        (192, 4, 1),
        (96, 8, 2),
    ]
    assert [(s.image_size, s.image_pool, s.image_tokens) for s in shapes] == [(64, 1, 16), (96, 3, 4), (32, 1, 4)]


@pytest.mark.parametrize("name", LAYOUTS)
def test_losses_and_gradient_norms_equal(name: str, reference: list[dict[str, float]]) -> None:
    ranks, parallel = LAYOUTS[name]
    results = run_ranks(ranks, _steps, _configuration(parallel))
    assert all(result == results[0] for result in results), "ranks report different numbers"
    for ours, theirs in zip(results[0], reference, strict=True):
        assert ours.keys() == theirs.keys() == {"loss", "grad_norm", "text", "caption"}
        for key, value in theirs.items():
            tolerance = 3e-5 * value if key == "grad_norm" else 2e-6
            assert abs(ours[key] - value) <= tolerance, (key, ours[key], value)


def _position_gradients(config: Any) -> tuple[bool, int]:
    """At another size every learned position of the encoder has a gradient, and an update moves it."""
    top = topology.initialize(config.parallel, config.schedule.seed)
    engine = Engine(config, TOKENS, top)
    engine.enter_stage(1)
    weight = next(p for n, p in engine.chunks[0].named_parameters() if "position_embeddings" in n)
    before = weight.detach().clone()
    train_step(engine, micro_batches(config.shape_of(2), 2, top), top, 1e-3)
    return bool((weight.main_grad != 0).any(dim=1).all()), int((weight != before).any(dim=1).sum())


def test_positions_learn_at_another_size() -> None:
    has_gradient, moved = run_ranks(1, _position_gradients, _configuration())[0]
    assert has_gradient
    assert moved == 64


def _refusal(config: Any, case: str) -> str:
    top = topology.initialize(config.parallel, config.schedule.seed)
    engine = Engine(config, TOKENS, top)
    engine.enter_stage(0)
    shape = config.shape_of(0)
    if case == "unlike lengths":
        batches = [*micro_batches(shape, 0, top), *micro_batches(replace(shape, sequence_length=112), 0, top)]
    else:  # the data path expanded pictures to another number of placeholders than their rows average to
        batches = micro_batches(replace(shape, image_tokens=9), 0, top)
    try:
        train_step(engine, batches, top, 1e-3)
    except ValueError as refusal:
        return str(refusal)
    return "taken"


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ("unlike lengths", "the micro-batches of a step must be of one length, not [224, 256]"),
        (
            "placeholders",
            "a picture has 4 x 4 rows after the projector, and 9 placeholders: averaging squares of rows gives",
        ),
    ],
)
def test_what_does_not_fit_is_refused(case: str, reason: str) -> None:
    assert reason in run_ranks(1, _refusal, _configuration(), case)[0]
