"""First weights: the same numbers in every layout, from the seed and the name alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_vlm.config.data import TokenCounts
from megatron_vlm.models.initialization import sharded_parameters
from megatron_vlm.parallel import topology
from megatron_vlm.training.engine import build_chunks
from tests.distributed.ranks import run_ranks
from tests.distributed.tiny_run import PP2, TP2, configuration

TOKENS = TokenCounts(vocab_size=300, eod_id=0, image_token_id=1, pad_id=2)
VISION = "{kind: dinov2, register_tokens: 2, num_layers: 2, hidden_size: 64}"


def _config(parallel: dict[str, Any], **fields: Any) -> Any:
    return configuration(Path("nowhere"), parallel, **{"model.vision": VISION, **fields})


def _first_weights(config: Any) -> list[tuple[str, tuple[int, ...], tuple[int, ...], np.ndarray]]:
    chunks = build_chunks(config, TOKENS, topology.initialize(config.parallel, config.schedule.seed))
    return [
        (shard.key, tuple(shard.global_shape), tuple(shard.global_offset), shard.data.detach().numpy().copy())
        for shard in sharded_parameters(chunks)
        if shard.data is not None
    ]


def _whole(ranks: int, config: Any) -> dict[str, np.ndarray]:
    whole: dict[str, np.ndarray] = {}
    for name, shape, offset, part in (shard for shards in run_ranks(ranks, _first_weights, config) for shard in shards):
        place = tuple(slice(o, o + n) for o, n in zip(offset, part.shape, strict=True))
        whole.setdefault(name, np.full(shape, np.nan, np.float32))[place] = part
    return whole


@pytest.fixture(scope="module")
def alone() -> dict[str, np.ndarray]:
    return _whole(1, _config({}))


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("ranks", "parallel"),
    [
        (2, {**TP2, "sequence_parallel": True}),
        (2, PP2),
        (2, {**PP2, "virtual_pipeline_model_parallel_size": 2}),
        (4, {**TP2, **PP2}),
    ],
)
def test_every_layout_begins_with_the_same_bits(ranks: int, parallel: dict[str, Any], alone: dict[str, np.ndarray]) -> None:
    split = _whole(ranks, _config(parallel))
    assert split.keys() == alone.keys()
    for name, value in alone.items():
        assert np.array_equal(split[name], value), name


def test_layers_differ_and_another_seed_is_another_model(alone: dict[str, np.ndarray]) -> None:
    layer = "language_model.decoder.layers.{}.self_attention.linear_proj.weight"
    assert not np.array_equal(alone[layer.format(0)], alone[layer.format(1)])
    other = _whole(1, _config({}, **{"schedule.seed": 99}))
    drawn = [name for name in alone if not np.array_equal(alone[name], other[name])]
    assert len(drawn) > 30
    assert all("norm" not in name and not name.endswith("bias") for name in drawn)


def test_scales(alone: dict[str, np.ndarray]) -> None:
    """Standard deviations, to the 5 % that such small matrices allow; the truncation at 3 sigma takes 1.5 %."""
    layer = "language_model.decoder.layers.0."
    for name, expected in {
        layer + "self_attention.linear_qkv.weight": 0.02,
        layer + "self_attention.linear_proj.weight": 0.02 / (2 * 4) ** 0.5,
        layer + "mlp.linear_fc2.weight": 0.02 / (2 * 4) ** 0.5,
        "language_model.embedding.word_embeddings.weight": 0.02,
        "vision.patch_embedding.weight": (3 * 16 * 16) ** -0.5,
        "vision.position_embeddings.weight": 0.02,
        "projector.linear_fc1.weight": (4 * 64) ** -0.5,
    }.items():
        assert alone[name].std() == pytest.approx(expected, rel=0.08), name
        assert np.abs(alone[name]).max() <= 3.001 * expected
    biases = [name for name in alone if name.endswith("bias")]
    assert biases
    assert all(not alone[name].any() for name in biases)
    assert all((alone[name] == 1).all() for name in alone if name.endswith(("norm.weight", "gamma")))
    assert alone["vision.class_token"].any()


def test_nothing_is_left_undrawn(alone: dict[str, np.ndarray]) -> None:
    assert all(np.isfinite(value).all() for value in alone.values())
    assert [name for name, value in alone.items() if value.ndim > 1 and not value.any()] == []
