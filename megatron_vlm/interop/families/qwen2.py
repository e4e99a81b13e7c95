"""Qwen2 and 2.5: Llama's layers with biases of query, key and value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from megatron_vlm.config.model import LanguageConfig
from megatron_vlm.interop.families import llama
from megatron_vlm.interop.families.decoder import decoder_mapping, unlike
from megatron_vlm.interop.families.fields import window_reason
from megatron_vlm.interop.mapping import LanguageFamily, refuse

_DEFAULTS = {"intermediate_size": 22016}


def read(config: Mapping[str, Any]) -> LanguageConfig:
    refuse("qwen2", [window_reason(config, bool(config.get("use_sliding_window")))])
    return replace(llama.read({**_DEFAULTS, **config}), add_qkv_bias=True)


def write(language: LanguageConfig, rows: int) -> dict[str, Any]:
    refuse("qwen2", unlike(language, add_qkv_bias=True, kv_channels=None))
    fields = llama.write(replace(language, add_qkv_bias=False), rows)
    for name in ("attention_bias", "mlp_bias", "head_dim"):
        del fields[name]
    return {**fields, "use_sliding_window": False}


FAMILY = LanguageFamily("qwen2", "Qwen2ForCausalLM", read, write, decoder_mapping)
