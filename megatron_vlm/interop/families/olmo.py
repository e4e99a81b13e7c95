"""OLMo, the first: Llama's layers with a LayerNorm that has neither gain nor bias."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from megatron_vlm.config.model import LanguageConfig
from megatron_vlm.interop.families import llama
from megatron_vlm.interop.families.decoder import decoder_mapping, unlike
from megatron_vlm.interop.mapping import LanguageFamily, refuse

_EPSILON = 1e-5  # fixed in its code


def read(config: Mapping[str, Any]) -> LanguageConfig:
    """The gains of this project's norm are one, and stay so as long as they are not trained."""
    clip = config.get("clip_qkv")
    refuse("olmo", [f"clip_qkv {clip}: queries, keys and values are cut off at it" if clip else ""])
    return replace(llama.read(config), normalization="layernorm_gain", norm_epsilon=_EPSILON)


def write(language: LanguageConfig, rows: int) -> dict[str, Any]:
    refuse("olmo", unlike(language, normalization="layernorm_gain", norm_epsilon=_EPSILON, kv_channels=None))
    fields = llama.write(replace(language, normalization="rmsnorm"), rows)
    for name in ("mlp_bias", "rms_norm_eps", "head_dim"):
        del fields[name]
    return {**fields, "clip_qkv": None}


FAMILY = LanguageFamily("olmo", "OlmoForCausalLM", read, write, partial(decoder_mapping, gains=False))
