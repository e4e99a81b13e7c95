"""A stage of other lengths, batches, picture sizes and tokens a picture: the same losses in every layout, with one model.

Two steps of 8 x 128 positions with pictures of 64 pixels, then two of 4 x 192 with pictures of 96 pixels in as many tokens,
then two of 8 x 96 with pictures of 32 pixels. fp32; tolerances as in test_layouts.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_vlm.config.data import TokenCounts
from megatron_vlm.config.steps import StepShape
from megatron_vlm.data.micro_batch import MicroBatch, make_micro_batch
from megatron_vlm.ops.assemble import MODALITY_CAPTION, MODALITY_TEXT, Segment
from megatron_vlm.parallel import topology
from megatron_vlm.parallel.topology import Topology
from megatron_vlm.training.engine import Engine
from megatron_vlm.training.step import train_step
from tests.distributed.ranks import run_ranks
from tests.distributed.tiny_run import PP2, TP2, configuration

pytestmark = pytest.mark.distributed

TOKENS = TokenCounts(vocab_size=300, eod_id=0, image_token_id=1, pad_id=2)
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


def packs(shape: StepShape, step: int) -> list[tuple[list[Segment], list[np.ndarray]]]:
    """A global batch: each pack's segments and pictures; some packs without a picture, some with two."""
    rng = np.random.default_rng(100 + step)
    made = []
    for number in range(shape.global_batch_size):
        segments, pictures, room = [], [], shape.sequence_length
        for picture in (number % 2 == 0, number % 4 == 0, False):
            length = min(room, int(rng.integers(24, 40)))
            ids = rng.integers(3, TOKENS.vocab_size, length + 1).astype(np.int32)
            if picture:
                ids[: shape.image_tokens] = TOKENS.image_token_id
                pictures.append(rng.integers(0, 256, (shape.image_size, shape.image_size, 3)).astype(np.uint8))
            segments.append(Segment(ids, MODALITY_CAPTION if picture else MODALITY_TEXT))
            room -= length
        made.append((segments, pictures))
    return made


def micro_batches(shape: StepShape, step: int, top: Topology) -> list[MicroBatch]:
    """This rank's part of a global batch, dealt in order."""
    whole = packs(shape, step)
    each = shape.global_batch_size // top.data_size
    mine = whole[top.data_rank * each : (top.data_rank + 1) * each]
    batches = []
    for first in range(0, each, shape.micro_batch_size):
        part = mine[first : first + shape.micro_batch_size]
        pictures = [picture for _, found in part for picture in found] if top.on_first_stage else None
        segments = [found for found, _ in part]
        batches.append(
            make_micro_batch(segments, pictures, shape.sequence_length, TOKENS, shape.image_tokens, shape.image_size)
        )
    return batches


def _steps(config: Any) -> list[dict[str, float]]:
    top = topology.initialize(config.parallel, config.schedule.seed)
    engine = Engine(config, TOKENS, top)
    results = []
    for step in range(config.total_steps):
        shape = config.shape_of(step)
        engine.enter_stage(shape.stage)
        result = train_step(engine, micro_batches(shape, step, top), top, 1e-3, step)
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
    train_step(engine, micro_batches(config.shape_of(2), 2, top), top, 1e-3, 2)
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
        train_step(engine, batches, top, 1e-3, 0)
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
