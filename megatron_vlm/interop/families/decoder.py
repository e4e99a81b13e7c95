"""The decoder whose tensor names Llama brought and most families kept, with what they add to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from megatron_vlm.config.model import LanguageConfig
from megatron_vlm.interop.layouts import Constant, GroupedQKV, Layout, Same, Stacked
from megatron_vlm.interop.mapping import Entry, Ignored, TensorMapping
from megatron_vlm.interop.model_tensors import OUTPUT, WORDS, layer_norms

BUFFERS = Ignored(r"(.*\.)?(rotary_emb\.inv_freq|rotary_emb\.(cos|sin)_cached|attention\.(masked_)?bias)", "a buffer")


_NORMS = ("input_layernorm", "post_attention_layernorm")


def decoder_mapping(
    language: LanguageConfig, rows: int, gains: bool = True, norms: tuple[str, str] = _NORMS
) -> TensorMapping:
    """The tensors of a *ForCausalLM whose layers are Llama's in name.

    `rows`: of the vocabulary, as the folder has it. `gains` False: norms have no gain (OLMo). `norms`: a layer's two.
    """
    hidden, width = language.hidden_size, language.ffn_width
    entries = [Entry(WORDS, ("model.embed_tokens.weight",), Same((rows, hidden)))]

    def norm(ours: str, theirs: str, size: int = hidden) -> None:
        for kind in ("weight", "bias") if language.normalization == "layernorm" else ("weight",):
            layout: Layout = Same((size,)) if gains else Constant((size,), 1.0)
            entries.append(Entry(f"{ours}{kind}", (f"{theirs}.{kind}",) if gains else (), layout))

    for number in range(language.num_layers):
        ours, theirs = f"language_model.decoder.layers.{number}.", f"model.layers.{number}."
        attention = f"{theirs}self_attn."
        for own, name in zip(layer_norms(language), norms, strict=True):
            norm(ours + own, theirs + name)
        for kind in ("weight", "bias") if language.add_qkv_bias else ("weight",):
            entries.append(
                Entry(
                    f"{ours}self_attention.linear_qkv.{kind}",
                    tuple(f"{attention}{name}_proj.{kind}" for name in "qkv"),
                    qkv_layout(language, hidden if kind == "weight" else None),
                )
            )
        if language.qk_layernorm:
            for name, heads in (("q", language.num_attention_heads), ("k", language.query_groups)):
                size = language.head_dim * (heads if language.qk_layernorm_full_width else 1)
                norm(f"{ours}self_attention.{name}_layernorm.", f"{attention}{name}_norm", size)
        queries = language.num_attention_heads * language.head_dim
        gate_up = (f"{theirs}mlp.gate_proj.weight", f"{theirs}mlp.up_proj.weight")
        entries += [
            Entry(f"{ours}self_attention.linear_proj.weight", (f"{attention}o_proj.weight",), Same((hidden, queries))),
            Entry(f"{ours}mlp.linear_fc1.weight", gate_up, Stacked(((width, hidden), (width, hidden)))),
            Entry(f"{ours}mlp.linear_fc2.weight", (f"{theirs}mlp.down_proj.weight",), Same((hidden, width))),
        ]
    norm("language_model.decoder.final_layernorm.", "model.norm")
    ignored = [BUFFERS]
    if language.untie_embeddings:
        entries.append(Entry(OUTPUT, ("lm_head.weight",), Same((rows, hidden))))
    else:
        ignored.append(Ignored(r"lm_head\.weight", "the word embeddings once more"))
    return TensorMapping(tuple(entries), tuple(ignored))


def qkv_layout(language: LanguageConfig, width: int | None, fused: bool = False) -> GroupedQKV:
    """`width` of the input, None for the bias."""
    return GroupedQKV(language.num_attention_heads, language.query_groups, language.head_dim, width, fused)


def sizes(language: LanguageConfig, rows: int) -> dict[str, Any]:
    """The fields of config.json that every such family has."""
    return {
        "vocab_size": rows,
        "hidden_size": language.hidden_size,
        "intermediate_size": language.ffn_width,
        "num_hidden_layers": language.num_layers,
        "num_attention_heads": language.num_attention_heads,
        "num_key_value_heads": language.query_groups,
        "tie_word_embeddings": not language.untie_embeddings,
    }


def read_sizes(config: Mapping[str, Any], heads_apart: bool = True, tied: bool = False) -> dict[str, Any]:
    """Fields of LanguageConfig from those. `heads_apart`: the family may say head_dim; `tied`: its default."""
    heads, hidden = int(config["num_attention_heads"]), int(config["hidden_size"])
    head = config.get("head_dim") if heads_apart else None
    return {
        "num_layers": int(config["num_hidden_layers"]),
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_query_groups": int(config.get("num_key_value_heads") or heads),
        "kv_channels": None if head is None or head * heads == hidden else int(head),
        "ffn_hidden_size": int(config["intermediate_size"]),
        "untie_embeddings": not config.get("tie_word_embeddings", tied),
    }


def unlike(language: LanguageConfig, **wanted: Any) -> list[str]:
    """A sentence for each field that is not what a family always has."""
    return [
        f"model.language.{name} is {getattr(language, name)!r}, and the family has {value!r}"
        for name, value in wanted.items()
        if (getattr(language, name) not in value if isinstance(value, tuple) else getattr(language, name) != value)
    ]
