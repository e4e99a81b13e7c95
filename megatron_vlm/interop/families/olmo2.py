"""OLMo 2: norms after attention and MLP, queries and keys normalised over all heads together. Its successor is refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from megatron_vlm.config.model import LanguageConfig
from megatron_vlm.interop.families import llama
from megatron_vlm.interop.families.decoder import decoder_mapping, unlike
from megatron_vlm.interop.mapping import LanguageFamily, refuse

#: why the later one is refused, by model_type
REFUSED = {"olmo3": "its layers see a sliding window and the whole document in turn; olmo2 is taken"}


def read(config: Mapping[str, Any]) -> LanguageConfig:
    plain = llama.read({"rms_norm_eps": 1e-5, **config})
    return replace(plain, qk_layernorm=True, qk_layernorm_full_width=True, norm_after=True)


def write(language: LanguageConfig, rows: int) -> dict[str, Any]:
    refuse("olmo2", unlike(language, qk_layernorm=True, qk_layernorm_full_width=True, norm_after=True, kv_channels=None))
    plain = replace(language, qk_layernorm=False, qk_layernorm_full_width=False, norm_after=False)
    fields = llama.write(plain, rows)
    for name in ("mlp_bias", "head_dim"):
        del fields[name]
    return fields


_NORMS = ("post_attention_layernorm", "post_feedforward_layernorm")
FAMILY = LanguageFamily("olmo2", "Olmo2ForCausalLM", read, write, partial(decoder_mapping, norms=_NORMS))
