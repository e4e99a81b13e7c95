"""Gemma, the first: scaled word embeddings, gains kept as their distance from one, a gated GELU. Later ones are refused."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from megatron_vlm.config.model import LanguageConfig
from megatron_vlm.interop.families.decoder import decoder_mapping, read_sizes, sizes, unlike
from megatron_vlm.interop.families.fields import partial_reason, read_rope, write_rope
from megatron_vlm.interop.mapping import LanguageFamily, refuse

#: why later ones are refused, by model_type
REFUSED = {
    "gemma2": "its attention scores and its logits are capped by a tanh and its layers have norms after attention and MLP, "
    "which megatron-core's GPTModel does not have; gemma is taken",
    "gemma3_text": "its layers see a sliding window and the whole document in turn, each with a rotary base of its own, and "
    "megatron-core's GPTModel has one base; gemma is taken",
    "gemma3": "its layers see a sliding window and the whole document in turn, each with a rotary base of its own, and "
    "megatron-core's GPTModel has one base; gemma is taken",
}


def read(config: Mapping[str, Any]) -> LanguageConfig:
    act = config.get("hidden_activation") or config.get("hidden_act") or "gelu_pytorch_tanh"
    rope = read_rope(config)
    refuse(
        "gemma",
        [
            partial_reason(rope),
            f"hidden activation {act!r}, not gelu_pytorch_tanh" if act not in ("gelu_pytorch_tanh", "gelu") else "",
            "attention_bias: its output matrix has a bias and its MLP has none" if config.get("attention_bias") else "",
        ],
    )
    return LanguageConfig(
        **read_sizes({"head_dim": 256, **config}, tied=True),
        normalization="rmsnorm",
        norm_epsilon=float(config.get("rms_norm_eps", 1e-6)),
        zero_centered_gamma=True,
        activation="geglu",
        qk_layernorm=False,
        embedding_scale=math.sqrt(config["hidden_size"]),
        rotary_base=rope.base,
        rope_scaling_factor=rope.factor,
    )


def write(language: LanguageConfig, rows: int) -> dict[str, Any]:
    refuse(
        "gemma",
        unlike(
            language,
            normalization="rmsnorm",
            zero_centered_gamma=True,
            activation="geglu",
            qk_layernorm=False,
            add_qkv_bias=False,
            add_bias_linear=False,
            parallel_residual=False,
            norm_after=False,
            qk_layernorm_full_width=False,
            rotary_percent=1.0,
            embedding_scale=math.sqrt(language.hidden_size),
        ),
    )
    return {
        **sizes(language, rows),
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_act": "gelu_pytorch_tanh",
        "head_dim": language.head_dim,
        "rms_norm_eps": language.norm_epsilon,
        "attention_bias": False,
        "rope_parameters": write_rope(language.rotary_base, language.rope_scaling_factor),
    }


FAMILY = LanguageFamily("gemma", "GemmaForCausalLM", read, write, decoder_mapping)
