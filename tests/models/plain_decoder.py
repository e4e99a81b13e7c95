"""The decoder once more in plain PyTorch, one document at a time: what the packed, parallel one is held against."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_vlm.config.model import LanguageConfig


def _norm(language: LanguageConfig, x: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    if language.normalization == "rmsnorm":
        scale = (x.square().mean(-1, keepdim=True) + language.norm_epsilon).rsqrt()
        return x * scale * weights[f"{name}.weight"]
    bias = weights.get(f"{name}.bias")
    return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], bias, language.norm_epsilon)


def _rotated(x: Tensor, base: float) -> Tensor:
    """`[t, heads, d]`: the first half of a head turns with the second, by position * base^(-2i/d)."""
    length, _, size = x.shape
    frequencies = base ** (-torch.arange(0, size, 2) / size)
    angles = torch.outer(torch.arange(length).float(), frequencies).unsqueeze(1)
    first, second = x.chunk(2, dim=-1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def _attention(language: LanguageConfig, x: Tensor, weights: dict[str, Tensor], where: str) -> Tensor:
    heads, groups, size = language.num_attention_heads, language.query_groups, language.head_dim
    shared = heads // groups
    mixed = (x @ weights[f"{where}.linear_qkv.weight"].T).view(len(x), groups, shared + 2, size)
    query, key, value = mixed.split([shared, 1, 1], dim=2)
    query, key, value = query.reshape(len(x), heads, size), key.squeeze(2), value.squeeze(2)
    if language.qk_layernorm:
        query = _norm(language, query, weights, f"{where}.q_layernorm")
        key = _norm(language, key, weights, f"{where}.k_layernorm")
    query, key = _rotated(query, language.rotary_base), _rotated(key, language.rotary_base)
    key, value = (t.repeat_interleave(shared, dim=1) for t in (key, value))
    scores = torch.einsum("qhd,khd->hqk", query, key) / size**0.5
    scores = scores.masked_fill(torch.ones_like(scores[0]).triu(1).bool(), float("-inf"))
    mixed = torch.einsum("hqk,khd->qhd", scores.softmax(-1), value).flatten(1)
    return mixed @ weights[f"{where}.linear_proj.weight"].T


def _mlp(language: LanguageConfig, x: Tensor, weights: dict[str, Tensor], where: str) -> Tensor:
    x = x @ weights[f"{where}.linear_fc1.weight"].T
    if language.activation == "swiglu":
        gate, up = x.chunk(2, dim=-1)
        x = F.silu(gate) * up
    else:
        x = F.gelu(x)
    return x @ weights[f"{where}.linear_fc2.weight"].T


def token_losses(language: LanguageConfig, weights: dict[str, Tensor], x: Tensor, labels: Tensor, z_loss: float) -> Tensor:
    """Rows `[t, hidden]` that enter the first layer and labels `[t]` of one document -> loss of each position `[t]`."""
    for number in range(language.num_layers):
        layer = f"decoder.layers.{number}"
        normed = _norm(language, x, weights, f"{layer}.input_layernorm")
        x = x + _attention(language, normed, weights, f"{layer}.self_attention")
        normed = _norm(language, x, weights, f"{layer}.pre_mlp_layernorm")
        x = x + _mlp(language, normed, weights, f"{layer}.mlp")
    x = _norm(language, x, weights, "decoder.final_layernorm")
    table = "output_layer.weight" if language.untie_embeddings else "embedding.word_embeddings.weight"
    logits = x @ weights[table].T
    return F.cross_entropy(logits, labels, reduction="none") + z_loss * logits.logsumexp(dim=-1).square()
