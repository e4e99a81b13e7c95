"""Qwen3, dense: Llama's layers with queries and keys normalised per head."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from megatron_vlm.config.model import LanguageConfig
from megatron_vlm.interop.families import llama
from megatron_vlm.interop.families.decoder import decoder_mapping, unlike
from megatron_vlm.interop.families.fields import field, window_reason
from megatron_vlm.interop.mapping import LanguageFamily, refuse


def read(config: Mapping[str, Any]) -> LanguageConfig:
    refuse("qwen3", [window_reason(config, bool(config.get("use_sliding_window")))])
    head = field(config, "head_dim", 128)
    return replace(llama.read({**config, "head_dim": head}), qk_layernorm=True)


def write(language: LanguageConfig, rows: int) -> dict[str, Any]:
    refuse("qwen3", unlike(language, qk_layernorm=True))
    fields = llama.write(replace(language, qk_layernorm=False), rows)
    del fields["mlp_bias"]
    return {**fields, "use_sliding_window": False}


FAMILY = LanguageFamily("qwen3", "Qwen3ForCausalLM", read, write, decoder_mapping)
