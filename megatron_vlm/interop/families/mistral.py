"""Mistral: Llama's layers; early ones have a sliding window."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from megatron_vlm.config.model import LanguageConfig
from megatron_vlm.interop.families import llama
from megatron_vlm.interop.families.decoder import decoder_mapping
from megatron_vlm.interop.families.fields import window_reason
from megatron_vlm.interop.mapping import LanguageFamily, refuse

_DEFAULTS: dict[str, Any] = {
    "intermediate_size": 14336,
    "num_key_value_heads": 8,
    "sliding_window": 4096,
    "max_position_embeddings": 4096 * 32,
}


def read(config: Mapping[str, Any]) -> LanguageConfig:
    config = {**_DEFAULTS, **config}
    refuse("mistral", [window_reason(config)])
    return llama.read(config)


def write(language: LanguageConfig, rows: int) -> dict[str, Any]:
    fields = llama.write(language, rows)
    for name in ("attention_bias", "mlp_bias"):
        del fields[name]
    return {**fields, "sliding_window": None}


FAMILY = LanguageFamily("mistral", "MistralForCausalLM", read, write, decoder_mapping)
