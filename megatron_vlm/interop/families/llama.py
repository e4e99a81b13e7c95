"""Llama 1 to 3 (and the many that took its class): RMSNorm, SwiGLU, rotary positions, no biases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from megatron_vlm.config.model import LanguageConfig
from megatron_vlm.interop.families.decoder import decoder_mapping, read_sizes, sizes, unlike
from megatron_vlm.interop.families.fields import partial_reason, read_rope, write_rope
from megatron_vlm.interop.mapping import LanguageFamily, refuse

#: what every family with these layers has, and this project's model can have otherwise
PLAIN: dict[str, Any] = {
    "normalization": "rmsnorm",
    "activation": "swiglu",
    "add_bias_linear": False,
    "parallel_residual": False,
    "zero_centered_gamma": False,
    "embedding_scale": 1.0,
    "qk_layernorm_full_width": False,
    "norm_after": False,
    "rotary_percent": 1.0,
}

#: what transformers takes where config.json is silent, as those of many vision-language models are
DEFAULTS: dict[str, Any] = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
}


def read(config: Mapping[str, Any]) -> LanguageConfig:
    rope = read_rope(config)
    refuse(
        "llama",
        [
            partial_reason(rope),
            "attention_bias: its output matrix has a bias and its MLP has none" if config.get("attention_bias") else "",
            "mlp_bias: its MLP has biases and its attention has none" if config.get("mlp_bias") else "",
            f"hidden_act {config.get('hidden_act')!r}, not silu" if config.get("hidden_act", "silu") != "silu" else "",
        ],
    )
    return LanguageConfig(
        **read_sizes({**DEFAULTS, **config}),
        normalization="rmsnorm",
        norm_epsilon=float(config.get("rms_norm_eps", 1e-6)),
        qk_layernorm=False,
        rotary_base=rope.base,
        rope_scaling_factor=rope.factor,
    )


def write(language: LanguageConfig, rows: int) -> dict[str, Any]:
    refuse("llama", unlike(language, **PLAIN, qk_layernorm=False, add_qkv_bias=False))
    return {
        **sizes(language, rows),
        "hidden_act": "silu",
        "head_dim": language.head_dim,
        "rms_norm_eps": language.norm_epsilon,
        "attention_bias": False,
        "mlp_bias": False,
        "rope_parameters": write_rope(language.rotary_base, language.rope_scaling_factor),
    }


FAMILY = LanguageFamily("llama", "LlamaForCausalLM", read, write, decoder_mapping)
