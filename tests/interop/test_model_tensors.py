"""Names and shapes told from a configuration are those of the model that is built from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from megatron.core.dist_checkpointing.mapping import ShardedObject

from megatron_vlm.config.data import TokenCounts
from megatron_vlm.interop.model_tensors import first_constant, model_tensors
from megatron_vlm.models.initialization import SHARDING_METADATA, sharded_parameters
from megatron_vlm.models.language import padded_vocab_size
from megatron_vlm.parallel import topology
from megatron_vlm.training.engine import build_chunks
from tests.distributed.ranks import run_ranks
from tests.distributed.tiny_run import configuration

VARIANTS: dict[str, dict[str, Any]] = {
    "tiny": {},
    "qwen2": {"model.language.add_qkv_bias": True, "model.language.qk_layernorm": False},
    "neox": {
        "model.language.normalization": "layernorm",
        "model.language.activation": "gelu",
        "model.language.add_bias_linear": True,
        "model.language.parallel_residual": True,
        "model.language.rotary_percent": 0.5,
        "model.vision.kind": "clip",
        "model.vision.final_norm": False,
        "model.vision.skip_last_layers": 1,
    },
    "gemma": {
        "model.language.zero_centered_gamma": True,
        "model.language.activation": "geglu",
        "model.language.kv_channels": 32,
        "model.language.untie_embeddings": False,
        "model.projector.kind": "mlp3",
        "model.vision.kind": "dinov2",
        "model.vision.register_tokens": 3,
    },
    "two encoders": {
        "model.vision_second": "{kind: dinov2, register_tokens: 2, patch_size: 16, num_layers: 2, hidden_size: 32}",
        "model.projector.kind": "mlp3",
    },
    "olmo2": {"model.language.qk_layernorm_full_width": True, "model.language.norm_after": True},
    "open_lm": {
        "model.language.qk_layernorm_full_width": True,
        "model.language.normalization": "layernorm_gain",
        "model.projector.kind": "linear",
    },
}


def _built(config: Any) -> tuple[dict[str, tuple[int, ...]], list[str], dict[str, float]]:
    top = topology.initialize(config.parallel, seed=1)
    chunks = build_chunks(config, TokenCounts(300, 0, 1, 2), top)
    shards = list(sharded_parameters(chunks))
    state = chunks[0].sharded_state_dict(metadata=dict(SHARDING_METADATA))
    others = [name for name, value in state.items() if isinstance(value, ShardedObject)]
    constant = {s.key: float(s.data.flatten()[0]) for s in shards if s.data.unique().numel() == 1}
    return {s.key: tuple(s.global_shape) for s in shards}, others, constant


@pytest.mark.parametrize("name", VARIANTS)
def test_names_and_shapes_are_the_models(name: str) -> None:
    config = configuration(Path("nowhere"), **VARIANTS[name])
    shapes, others, constant = run_ranks(1, _built, config)[0]
    told = model_tensors(config.model, padded_vocab_size(300, config.model.language.vocab_pad_multiple))
    assert told == shapes
    assert others == []  # a checkpoint holds tensors alone: extra state would be a pickle
    gamma = config.model.language.zero_centered_gamma
    assert {n: v for n in told if (v := first_constant(n, gamma)) is not None} == constant
