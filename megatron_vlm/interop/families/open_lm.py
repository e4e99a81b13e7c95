"""open_lm and DCLM: LayerNorm with a gain alone, SwiGLU, queries and keys normalised over all heads together.

`config.json` is that of DCLM's Hugging Face folders, whose `params_args_dict` holds open_lm's own parameters, or those
parameters alone, as open_lm's model configurations and `params.txt` have them. `transformers` has no such class, so this
family comes in and does not go out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from megatron_vlm.config.model import LanguageConfig, Normalization
from megatron_vlm.interop.families.decoder import qkv_layout
from megatron_vlm.interop.families.fields import field
from megatron_vlm.interop.layouts import Same
from megatron_vlm.interop.mapping import Entry, Ignored, LanguageFamily, TensorMapping, Unexpressed, refuse
from megatron_vlm.interop.model_tensors import OUTPUT, WORDS

MODEL_TYPE = "openlm"

_NORMS: dict[str, Normalization] = {
    "gain_only_layer_norm": "layernorm_gain",
    "gain_only_lp_layer_norm": "layernorm_gain",
    "default_layer_norm": "layernorm",
    "lp_layer_norm": "layernorm",
    "rms_norm": "rmsnorm",
}


def is_open_lm(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is open_lm's."""
    return config.get("model_type") == MODEL_TYPE or (
        "model_type" not in config and "n_layers" in config and ("dim" in config or "hidden_dim" in config)
    )


def read(config: Mapping[str, Any]) -> LanguageConfig:
    given = {**config, **(config.get("params_args_dict") or {})}
    norm, ffn = given.get("model_norm", "default_layer_norm"), given.get("ffn_type", "swiglu")
    positions = given.get("positional_embedding_type", "rotary")
    normalised = bool(given.get("qk_norm") or given.get("apply_qk_norm"))
    refuse(
        "open_lm",
        [
            f"model_norm {norm!r} is none of {', '.join(_NORMS)}" if norm not in _NORMS else "",
            f"ffn_type {ffn!r}, not swiglu" if ffn not in ("swiglu", "swiglu_torch") else "",
            f"positional_embedding_type {positions!r}, not rotary" if positions != "rotary" else "",
            "post_embed_norm: a norm after the word embeddings" if given.get("post_embed_norm") else "",
            "mixture of experts" if given.get("moe_freq") else "",
            "qk_norm with biases (of default_layer_norm and lp_layer_norm): this norm has a gain alone here"
            if normalised and _NORMS.get(norm) == "layernorm"
            else "",
        ],
    )
    hidden = int(given["dim"] if given.get("dim") else field(given, "hidden_dim"))
    return LanguageConfig(
        num_layers=int(field(given, "n_layers")),
        hidden_size=hidden,
        num_attention_heads=int(field(given, "n_heads")),
        ffn_hidden_size=256 * ((int(2 * 4 * hidden / 3) + 255) // 256),
        normalization=_NORMS[norm],
        norm_epsilon=float(given.get("norm_eps", 1e-5)),
        qk_layernorm=normalised,
        qk_layernorm_full_width=normalised,
        untie_embeddings=not given.get("weight_tying", False),
    )


def write(language: LanguageConfig, rows: int) -> dict[str, Any]:
    raise Unexpressed("openlm: transformers has no class of this family, so it is only read")


def mapping(language: LanguageConfig, rows: int) -> TensorMapping:
    """`w12` holds the gate and below it the up matrix, as ours does; `in_proj` all queries, all keys, all values."""
    hidden, width = language.hidden_size, language.ffn_width
    kinds = ("weight", "bias") if language.normalization == "layernorm" else ("weight",)
    entries = [Entry(WORDS, ("model.tok_embeddings.weight",), Same((rows, hidden)))]
    for number in range(language.num_layers):
        ours, theirs = f"language_model.decoder.layers.{number}.", f"model.layers.{number}."
        for kind in kinds:
            for own, name in (
                ("self_attention.linear_qkv.layer_norm_", "attention_norm"),
                ("mlp.linear_fc1.layer_norm_", "ffn_norm"),
            ):
                entries.append(Entry(f"{ours}{own}{kind}", (f"{theirs}{name}.{kind}",), Same((hidden,))))
        fused = qkv_layout(language, hidden, fused=True)
        entries += [
            Entry(f"{ours}self_attention.linear_qkv.weight", (f"{theirs}attention.in_proj.weight",), fused),
            Entry(
                f"{ours}self_attention.linear_proj.weight", (f"{theirs}attention.out_proj.weight",), Same((hidden, hidden))
            ),
            Entry(f"{ours}mlp.linear_fc1.weight", (f"{theirs}feed_forward.w12.weight",), Same((2 * width, hidden))),
            Entry(f"{ours}mlp.linear_fc2.weight", (f"{theirs}feed_forward.w3.weight",), Same((hidden, width))),
        ]
        if language.qk_layernorm:
            for name in "qk":
                there = f"{theirs}attention.{name}_norm.weight"
                entries.append(Entry(f"{ours}self_attention.{name}_layernorm.weight", (there,), Same((hidden,))))
    for kind in kinds:
        entries.append(Entry(f"language_model.decoder.final_layernorm.{kind}", (f"model.norm.{kind}",), Same((hidden,))))
    ignored = [Ignored(r".*\.inv_freq", "a buffer")]
    if language.untie_embeddings:
        entries.append(Entry(OUTPUT, ("model.output.weight",), Same((rows, hidden))))
    else:
        ignored.append(Ignored(r"model\.output\.weight", "the word embeddings once more"))
    return TensorMapping(tuple(entries), tuple(ignored))


FAMILY = LanguageFamily(MODEL_TYPE, "none", read, write, mapping, "model.", ())
