"""A step with loss weights has the gradient of sum(w * loss) / sum(w) over the global batch, in every layout.

The oracle is autograd over that formula on one rank. Tolerance: 1e-5 of a parameter's gradient norm, fp32 (seen: 2e-6).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from megatron_vlm.ops.assemble import MODALITY_CAPTION, MODALITY_TEXT
from megatron_vlm.parallel import topology
from megatron_vlm.training.engine import Engine, unwrap
from megatron_vlm.training.step import forward_row, train_step
from tests.distributed.drawn_batches import TOKENS, micro_batches
from tests.distributed.ranks import run_ranks
from tests.distributed.tiny_run import PP2, configuration

pytestmark = pytest.mark.distributed

#: the plain optimiser leaves every rank with the whole of its gradients
PLAIN = {"use_distributed_optimizer": False}
LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "dp2": (2, PLAIN),
    "dp2 overlapped": (2, {**PLAIN, "overlap_grad_reduce": True}),
    "pp2": (2, PP2),
    "pp2 x vp2": (2, {**PP2, "virtual_pipeline_model_parallel_size": 2}),
    "pp2 x dp2": (4, {**PP2, **PLAIN}),
}
LAYERS = 4
WEIGHTS = {"text": 0.3, "caption": 1.7}


def _configuration(weights: dict[str, float], parallel: dict[str, Any] | None = None) -> Any:
    named = ", ".join(f"{name}: {weight}" for name, weight in weights.items())
    stage = f"{{name: both, sources: {{text: 0.5, captions: 0.5}}, measure: samples, loss_weights: {{{named}}}}}"
    fields = {"curriculum.stages": f"[{stage}]", "optimizer.clip_grad": 0.0, "model.vision.patch_size": 8}
    return configuration(Path("nowhere"), parallel, **fields)


def _engine(config: Any) -> Engine:
    engine = Engine(config, TOKENS, topology.initialize(config.parallel, config.schedule.seed))
    engine.enter_stage(0)
    return engine


def _oracle(config: Any, weights: dict[str, float]) -> dict[str, np.ndarray]:
    engine = _engine(config)
    factors = {MODALITY_TEXT: weights.get("text", 1.0), MODALITY_CAPTION: weights.get("caption", 1.0)}
    total, count = torch.zeros(()), 0.0
    for batch in micro_batches(config.shape_of(0), 0, engine.topology):
        losses = forward_row(engine.ddp[0], batch)
        for modality, factor in factors.items():
            chosen = batch.label_modality == modality
            total = total + factor * losses[chosen].sum()
            count += factor * int(chosen.sum())
    named = {n: p for n, p in unwrap(engine.ddp[0]).named_parameters() if p.requires_grad}
    gradients = torch.autograd.grad(total / count, list(named.values()), allow_unused=True, materialize_grads=True)
    return {name: gradient.numpy() for name, gradient in zip(named, gradients, strict=True)}


def _trained(config: Any) -> tuple[dict[str, np.ndarray], dict[str, float], dict[str, float]]:
    """This rank's gradients, the losses that are reported, and how far each module's parameters moved."""
    engine = _engine(config)
    before = {name: p.detach().clone() for chunk in engine.chunks for name, p in chunk.named_parameters()}
    result = train_step(engine, micro_batches(config.shape_of(0), 0, engine.topology), engine.topology, 1e-3)
    gradients, moved = {}, {"language_model": 0.0, "vision": 0.0, "projector": 0.0}
    with engine.whole_parameters():
        for number, chunk in enumerate(engine.chunks):
            for name, parameter in unwrap(chunk).named_parameters():
                gradients[f"{number}.{name}"] = parameter.main_grad.numpy().copy()
                if number == 0:
                    distance = float((parameter - before[name]).abs().max())
                    moved[name.split(".")[0]] = max(moved[name.split(".")[0]], distance)
    return gradients, {"loss": result.loss, **result.losses}, moved


def _worst(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> float:
    """Of chunk 0 on one rank, whose names are the whole model's."""
    assert {name.removeprefix("0.") for name in ours} == theirs.keys()
    return max(
        float(np.linalg.norm(ours[f"0.{name}"] - gradient) / max(np.linalg.norm(gradient), 1e-12))
        for name, gradient in theirs.items()
    )


CASES = [WEIGHTS, {"caption": 0.0}, {"text": 0.0}, {"caption": 1e-3, "text": 1e3}, {}]


@pytest.mark.parametrize("weights", CASES, ids=str)
def test_the_gradient_is_that_of_the_weighted_mean(weights: dict[str, float]) -> None:
    config = _configuration(weights)
    expected = run_ranks(1, _oracle, config, weights)[0]
    ours, _, _ = run_ranks(1, _trained, config)[0]
    assert _worst(ours, expected) < 1e-5


def _whole(ranks: list[dict[str, np.ndarray]], stages: int, chunks: int) -> dict[str, np.ndarray]:
    """The gradients of a pipeline's ranks under the names that one rank alone has."""
    each, replicas = LAYERS // (stages * chunks), len(ranks) // stages
    found: dict[str, np.ndarray] = {}
    for rank, gradients in enumerate(ranks):
        for name, gradient in gradients.items():
            chunk, _, inner = name.partition(".")
            first = (int(chunk) * stages + rank // replicas) * each
            moved = re.sub(r"(?<=language_model.decoder.layers.)\d+", lambda m: str(int(m[0]) + first), inner)  # noqa: B023
            found[f"0.{moved}"] = gradient
    return found


@pytest.fixture(scope="module")
def expected() -> dict[str, np.ndarray]:
    return run_ranks(1, _oracle, _configuration(WEIGHTS), WEIGHTS)[0]


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_has_that_gradient(name: str, expected: dict[str, np.ndarray]) -> None:
    ranks, parallel = LAYOUTS[name]
    split = [gradients for gradients, _, _ in run_ranks(ranks, _trained, _configuration(WEIGHTS, parallel))]
    stages = parallel.get("pipeline_model_parallel_size", 1)
    whole = _whole(split, stages, parallel.get("virtual_pipeline_model_parallel_size", 1))
    assert _worst(whole, expected) < 1e-5


@pytest.mark.parametrize("weights", [WEIGHTS, {"caption": 0.0}], ids=str)
def test_reported_losses_are_not_weighted(weights: dict[str, float]) -> None:
    _, plain, _ = run_ranks(1, _trained, _configuration({}))[0]
    _, weighted, _ = run_ranks(1, _trained, _configuration(weights))[0]
    assert weighted == plain
    assert plain.keys() == {"loss", "text", "caption"}


def test_only_ratios_count() -> None:
    one, _, _ = run_ranks(1, _trained, _configuration({"text": 1.0, "caption": 3.0}))[0]
    other, _, _ = run_ranks(1, _trained, _configuration({"text": 0.1, "caption": 0.3}))[0]
    for name, gradient in one.items():
        assert np.linalg.norm(other[name] - gradient) <= 1e-5 * np.linalg.norm(gradient), name


def test_captions_of_no_weight_leave_the_encoder_as_it_is() -> None:
    """Gradients of zero would still decay its weights."""
    _, _, moved = run_ranks(1, _trained, _configuration({"caption": 0.0}))[0]
    assert moved["vision"] == moved["projector"] == 0.0
    assert moved["language_model"] > 0
    _, _, moved = run_ranks(1, _trained, _configuration({"caption": 1e-3}))[0]
    assert min(moved.values()) > 0
