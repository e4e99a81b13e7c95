"""StableLM: LayerNorm, SwiGLU, partial rotary positions, and norms of queries and keys for each head.

It is the class in which transformers can hold the block of this project's larger presets: a LayerNorm without bias is one
whose biases are zero, and one norm for all heads is the same norm for each.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from megatron_vlm.config.model import LanguageConfig
from megatron_vlm.interop.families.decoder import decoder_mapping, read_sizes, sizes, unlike
from megatron_vlm.interop.families.fields import read_rope, write_rope
from megatron_vlm.interop.layouts import Constant, Repeated, Shape
from megatron_vlm.interop.mapping import Entry, LanguageFamily, TensorMapping, refuse


def read(config: Mapping[str, Any]) -> LanguageConfig:
    act = config.get("hidden_act", "silu")
    refuse(
        "stablelm",
        [
            f"hidden_act {act!r}, not silu" if act != "silu" else "",
            "use_parallel_residual: both branches share a norm" if config.get("use_parallel_residual") else "",
        ],
    )
    rope = read_rope(config, default_percent=0.25)
    return LanguageConfig(
        **read_sizes(config, heads_apart=False),
        normalization="layernorm",
        norm_epsilon=float(config.get("layer_norm_eps", 1e-5)),
        qk_layernorm=bool(config.get("qk_layernorm")),
        add_qkv_bias=bool(config.get("use_qkv_bias")),
        rotary_base=rope.base,
        rotary_percent=rope.percent,
        rope_scaling_factor=rope.factor,
    )


def write(language: LanguageConfig, rows: int) -> dict[str, Any]:
    refuse(
        "stablelm",
        unlike(
            language,
            normalization=("layernorm", "layernorm_gain"),
            activation="swiglu",
            add_bias_linear=False,
            parallel_residual=False,
            norm_after=False,
            qk_layernorm_full_width=False,
            embedding_scale=1.0,
            kv_channels=None,
        ),
    )
    return {
        **sizes(language, rows),
        "hidden_act": "silu",
        "layer_norm_eps": language.norm_epsilon,
        "qk_layernorm": language.qk_layernorm,
        "use_qkv_bias": language.add_qkv_bias,
        "use_parallel_residual": False,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "rope_parameters": {
            **write_rope(language.rotary_base, language.rope_scaling_factor),
            "partial_rotary_factor": language.rotary_percent,
        },
    }


def mapping(language: LanguageConfig, rows: int) -> TensorMapping:
    plain = decoder_mapping(language, rows)
    entries = [
        _heads(language, entry) if "k_layernorm" in entry.ours or "q_layernorm" in entry.ours else entry
        for entry in plain.entries
    ]
    filled: dict[str, tuple[Shape, float]] = {}
    if language.normalization == "layernorm_gain":
        gains = [e for e in entries if e.ours.endswith(("layer_norm_weight", "final_layernorm.weight"))]
        filled = {e.theirs[0].removesuffix("weight") + "bias": (e.layout.ours, 0.0) for e in gains}
    return TensorMapping(tuple(entries), plain.ignored, filled)


def _heads(language: LanguageConfig, entry: Entry) -> Entry:
    """A norm for each head, and no bias of it."""
    if entry.ours.endswith("bias"):
        return Entry(entry.ours, (), Constant(entry.layout.ours, 0.0))
    count = language.num_attention_heads if "q_layernorm" in entry.ours else language.query_groups
    place = entry.theirs[0].removesuffix("_norm.weight")
    names = tuple(f"{place}_layernorm.norms.{head}.weight" for head in range(count))
    return Entry(entry.ours, names, Repeated(entry.layout.ours, count))


FAMILY = LanguageFamily("stablelm", "StableLmForCausalLM", read, write, mapping)
