"""GPT-NeoX and Pythia: LayerNorm and biases throughout, partial rotary positions, parallel residual."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from megatron_vlm.config.model import LanguageConfig
from megatron_vlm.interop.families.decoder import BUFFERS, read_sizes, sizes, unlike
from megatron_vlm.interop.families.encoder import ACTIVATION_NAMES, read_activation
from megatron_vlm.interop.families.fields import read_rope, write_rope
from megatron_vlm.interop.layouts import Same
from megatron_vlm.interop.mapping import Entry, Ignored, LanguageFamily, TensorMapping, refuse
from megatron_vlm.interop.model_tensors import OUTPUT, WORDS


def read(config: Mapping[str, Any]) -> LanguageConfig:
    refuse(
        "gpt_neox",
        ["attention_bias is false, and its MLP has biases" if not config.get("attention_bias", True) else ""],
    )
    rope = read_rope(config, default_percent=0.25)
    return LanguageConfig(
        **read_sizes(config, heads_apart=False),
        normalization="layernorm",
        norm_epsilon=float(config.get("layer_norm_eps", 1e-5)),
        activation=read_activation("gpt_neox", config.get("hidden_act", "gelu")),
        qk_layernorm=False,
        add_bias_linear=True,
        parallel_residual=bool(config.get("use_parallel_residual", True)),
        rotary_base=rope.base,
        rotary_percent=rope.percent,
        rope_scaling_factor=rope.factor,
    )


def write(language: LanguageConfig, rows: int) -> dict[str, Any]:
    refuse(
        "gpt_neox",
        unlike(
            language,
            normalization="layernorm",
            activation=tuple(ACTIVATION_NAMES),
            qk_layernorm=False,
            add_bias_linear=True,
            embedding_scale=1.0,
            norm_after=False,
            kv_channels=None,
            num_query_groups=(None, language.num_attention_heads),
        ),
    )
    fields = sizes(language, rows)
    del fields["num_key_value_heads"]
    return {
        **fields,
        "hidden_act": ACTIVATION_NAMES[language.activation],
        "layer_norm_eps": language.norm_epsilon,
        "use_parallel_residual": language.parallel_residual,
        "attention_bias": True,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "rope_parameters": {
            **write_rope(language.rotary_base, language.rope_scaling_factor),
            "partial_rotary_factor": language.rotary_percent,
        },
    }


def mapping(language: LanguageConfig, rows: int) -> TensorMapping:
    """Its fused matrix keeps query, key and value of a head together, as megatron-core does."""
    hidden, width = language.hidden_size, language.ffn_width
    entries = [Entry(WORDS, ("gpt_neox.embed_in.weight",), Same((rows, hidden)))]
    for number in range(language.num_layers):
        ours, theirs = f"language_model.decoder.layers.{number}.", f"gpt_neox.layers.{number}."
        for kind in ("weight", "bias"):
            entries += [
                Entry(
                    f"{ours}self_attention.linear_qkv.layer_norm_{kind}",
                    (f"{theirs}input_layernorm.{kind}",),
                    Same((hidden,)),
                ),
                Entry(
                    f"{ours}mlp.linear_fc1.layer_norm_{kind}", (f"{theirs}post_attention_layernorm.{kind}",), Same((hidden,))
                ),
            ]
            for part, name, out, into in (
                ("self_attention.linear_qkv", "attention.query_key_value", 3 * hidden, hidden),
                ("self_attention.linear_proj", "attention.dense", hidden, hidden),
                ("mlp.linear_fc1", "mlp.dense_h_to_4h", width, hidden),
                ("mlp.linear_fc2", "mlp.dense_4h_to_h", hidden, width),
            ):
                shape = (out, into) if kind == "weight" else (out,)
                entries.append(Entry(f"{ours}{part}.{kind}", (f"{theirs}{name}.{kind}",), Same(shape)))
    for kind in ("weight", "bias"):
        name = f"gpt_neox.final_layer_norm.{kind}"
        entries.append(Entry(f"language_model.decoder.final_layernorm.{kind}", (name,), Same((hidden,))))
    ignored = [BUFFERS]
    if language.untie_embeddings:
        entries.append(Entry(OUTPUT, ("embed_out.weight",), Same((rows, hidden))))
    else:
        ignored.append(Ignored(r"embed_out\.weight", "the word embeddings once more"))
    return TensorMapping(tuple(entries), tuple(ignored))


FAMILY = LanguageFamily("gpt_neox", "GPTNeoXForCausalLM", read, write, mapping, "gpt_neox.", ("embed_out.",))
