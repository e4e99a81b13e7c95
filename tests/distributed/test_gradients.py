"""Every gradient is the same in every layout, and the faults that would spoil one are seen.

Tolerance: 2e-6 of a gradient's norm, fp32 (seen: 1.2e-6, of a norm of 3e-4).
A norm without its sequence-parallel tag is 1e-1 off.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_vlm.models import fused_embedding
from megatron_vlm.models.initialization import sharded_parameters
from megatron_vlm.training.engine import unwrap
from megatron_vlm.training.loop import Run
from megatron_vlm.training.step import train_step
from tests.distributed.ranks import run_ranks
from tests.distributed.tiny_run import PP2, TP2, configuration, next_batches

pytestmark = pytest.mark.distributed

TP2_SP = {**TP2, "sequence_parallel": True}
#: the learning rate stands still, so that the test is of the gradient alone; nothing is frozen and pictures are there
FIXED = {
    "schedule.lr": 1e-9,
    "schedule.min_lr": 0.0,
    "optimizer.clip_grad": 0.0,
    "curriculum.stages": "[{name: both, sources: {text: 0.5, captions: 0.5}, measure: samples}]",
}

Shards = list[tuple[str, tuple[int, ...], tuple[int, ...], np.ndarray]]


def _forget_a_tag(core: Any) -> None:
    core.language_model.decoder.layers[0].input_layernorm.weight.sequence_parallel = False


def _rows_from_every_rank(core: Any) -> None:
    """Each tensor-parallel rank writes the picture rows, so that their sum holds them twice."""
    real = fused_embedding.fuse_embeddings
    fused_embedding.fuse_embeddings = lambda *args, **kw: real(*args, **{**kw, "rows_here": True})  # type: ignore[assignment]


def _shards(run: Run) -> Shards:
    """(global name, global shape, offset, this rank's part) of every gradient, by the names of the checkpoint."""
    owners = [
        (p.data_ptr(), p.numel() * p.element_size(), p)
        for chunk in run.engine.chunks
        for p in unwrap(chunk).parameters()
        if p.requires_grad
    ]
    found: Shards = []
    for shard in sharded_parameters([unwrap(chunk) for chunk in run.engine.chunks]):
        if shard.data is None:
            continue
        at = shard.data.data_ptr()
        for start, size, parameter in owners:
            if start <= at < start + size:  # a part of a gated matrix begins inside its parameter
                first = (at - start) // parameter.element_size()
                flat = parameter.main_grad.flatten()[first : first + shard.data.numel()]
                part = flat.view(shard.local_shape).numpy().copy()
                found.append((shard.key, tuple(shard.global_shape), tuple(shard.global_offset), part))
    return found


def _one_rank(config: Any, mutation: Any = None) -> Shards:
    run = Run(config)
    run._start()
    if mutation is not None:
        mutation(unwrap(run.engine.chunks[0]))
    batches, shape = next_batches(run)
    assert shape.pictures
    train_step(run.engine, batches, run.topology, 0.0)
    return _shards(run)


def _whole(ranks: list[Shards]) -> dict[str, np.ndarray]:
    whole: dict[str, np.ndarray] = {}
    for name, shape, offset, part in (shard for shards in ranks for shard in shards):
        place = tuple(slice(o, o + n) for o, n in zip(offset, part.shape, strict=True))
        whole.setdefault(name, np.full(shape, np.nan))[place] = part
    return whole


@pytest.fixture(scope="module")
def alone(data: Path) -> dict[str, np.ndarray]:
    return _whole(run_ranks(1, _one_rank, configuration(data, **FIXED)))


def _worst(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> float:
    assert ours.keys() == theirs.keys()
    return max(float(np.linalg.norm(ours[name] - g) / np.linalg.norm(g)) for name, g in theirs.items())


@pytest.mark.parametrize("parallel", [TP2, TP2_SP, PP2, {**PP2, "virtual_pipeline_model_parallel_size": 2}])
def test_every_gradient_is_the_same(parallel: dict[str, Any], data: Path, alone: dict[str, np.ndarray]) -> None:
    assert len(alone) > 60
    assert all(np.isfinite(gradient).all() for gradient in alone.values())
    split = _whole(run_ranks(2, _one_rank, configuration(data, parallel, **FIXED)))
    assert _worst(split, alone) < 2e-6


def test_a_norm_without_its_sequence_parallel_tag_is_seen(data: Path, alone: dict[str, np.ndarray]) -> None:
    split = _whole(run_ranks(2, _one_rank, configuration(data, TP2_SP, **FIXED), _forget_a_tag))
    assert _worst(split, alone) > 1e-2


@pytest.mark.parametrize("parallel", [TP2, TP2_SP], ids=["TP2", "TP2+SP"])
def test_pictures_that_every_rank_adds_are_seen(parallel: dict[str, Any], data: Path, alone: dict[str, np.ndarray]) -> None:
    split = _whole(run_ranks(2, _one_rank, configuration(data, parallel, **FIXED), _rows_from_every_rank))
    assert _worst(split, alone) > 1e-2
