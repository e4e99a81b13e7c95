"""Which tensors of the language model are which of a Hugging Face Llama or Qwen3, and how they are laid out there.

megatron-core keeps the rows of queries, keys and values of one group together (queries of the group, its key, its value),
where Hugging Face has three matrices; and gate over up as one matrix, where it has two. Rotary positions turn halves of a
head in both, so that no row moves inside one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_vlm.config.model import LanguageConfig


@dataclass(frozen=True)
class Rule:
    """One of our tensors and what of it is theirs.

    Attributes:
        ours, theirs: names.
        out: our tensor -> theirs, in the order of their names.
    """

    ours: str
    theirs: tuple[str, ...]
    out: Callable[[Tensor], tuple[Tensor, ...]]


def _same(tensor: Tensor) -> tuple[Tensor, ...]:
    return (tensor,)


def _halves(tensor: Tensor) -> tuple[Tensor, ...]:
    return tuple(tensor.chunk(2))


def split_qkv(tensor: Tensor, language: LanguageConfig) -> tuple[Tensor, Tensor, Tensor]:
    """`[groups * (queries + 2) * d, h]` by groups -> queries, keys, values, `[heads * d, h]` and twice `[groups * d, h]`."""
    groups, d = language.query_groups, language.head_dim
    queries = language.num_attention_heads // groups
    rows = tensor.view(groups, queries + 2, d, -1)
    parts = rows[:, :queries], rows[:, queries], rows[:, queries + 1]
    q, k, v = (part.reshape(-1, tensor.size(-1)) for part in parts)
    return q, k, v


def language_rules(language: LanguageConfig, vocab_size: int) -> Iterator[Rule]:
    """All tensors of a language model of this configuration; padding of the vocabulary is cut off."""

    def cut(tensor: Tensor) -> tuple[Tensor, ...]:
        return (tensor[:vocab_size],)

    root = "language_model."
    yield Rule(f"{root}embedding.word_embeddings.weight", ("model.embed_tokens.weight",), cut)
    for number in range(language.num_layers):
        mine, theirs = f"{root}decoder.layers.{number}.", f"model.layers.{number}."
        attention, mlp = f"{mine}self_attention.", f"{mine}mlp."
        yield Rule(f"{attention}linear_qkv.layer_norm_weight", (f"{theirs}input_layernorm.weight",), _same)
        yield Rule(
            f"{attention}linear_qkv.weight",
            tuple(f"{theirs}self_attn.{letter}_proj.weight" for letter in "qkv"),
            lambda tensor: split_qkv(tensor, language),
        )
        if language.qk_layernorm:
            for letter in "qk":
                yield Rule(f"{attention}{letter}_layernorm.weight", (f"{theirs}self_attn.{letter}_norm.weight",), _same)
        yield Rule(f"{attention}linear_proj.weight", (f"{theirs}self_attn.o_proj.weight",), _same)
        yield Rule(f"{mlp}linear_fc1.layer_norm_weight", (f"{theirs}post_attention_layernorm.weight",), _same)
        yield Rule(f"{mlp}linear_fc1.weight", (f"{theirs}mlp.gate_proj.weight", f"{theirs}mlp.up_proj.weight"), _halves)
        yield Rule(f"{mlp}linear_fc2.weight", (f"{theirs}mlp.down_proj.weight",), _same)
    yield Rule(f"{root}decoder.final_layernorm.weight", ("model.norm.weight",), _same)
    if language.untie_embeddings:
        yield Rule(f"{root}output_layer.weight", ("lm_head.weight",), cut)


def with_lora(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """A matrix with its low-rank update in it, in the matrix's dtype."""
    return (weight.float() + scale * (b.float() @ a.float())).to(weight.dtype)


def as_dtype(name: str) -> torch.dtype:
    """fp32 or bf16."""
    return {"fp32": torch.float32, "bf16": torch.bfloat16}[name]
