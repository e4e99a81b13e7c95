"""The language model of the `tiny` preset in plain PyTorch: the same layers, sizes and weights, no parallelism.

RMSNorm, grouped-query attention with normalised queries and keys, rotary positions, SwiGLU, untied embeddings, no biases.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megatron_vlm.config.model import LanguageConfig


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions on `[b, heads, s, d]`, halves rotated against each other."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


class Block(nn.Module):
    def __init__(self, language: LanguageConfig) -> None:
        super().__init__()
        hidden, self.head = language.hidden_size, language.head_dim
        self.groups, self.heads = language.query_groups, language.num_attention_heads
        self.input_norm = nn.RMSNorm(hidden, language.norm_epsilon)
        self.qkv = nn.Linear(hidden, (self.heads + 2 * self.groups) * self.head, bias=False)
        self.q_norm = nn.RMSNorm(self.head, language.norm_epsilon)
        self.k_norm = nn.RMSNorm(self.head, language.norm_epsilon)
        self.proj = nn.Linear(self.heads * self.head, hidden, bias=False)
        self.mlp_norm = nn.RMSNorm(hidden, language.norm_epsilon)
        self.gate_up = nn.Linear(hidden, 2 * language.ffn_width, bias=False)
        self.down = nn.Linear(language.ffn_width, hidden, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """`[b, s, hidden]` -> the same."""
        b, s, _ = x.shape
        each = self.heads // self.groups
        # a group's queries, its key and its value lie together, as in megatron-core
        qkv = self.qkv(self.input_norm(x)).view(b, s, self.groups, (each + 2) * self.head)
        q, k, v = qkv.split([each * self.head, self.head, self.head], dim=-1)
        q = self.q_norm(q.reshape(b, s, self.heads, self.head)).transpose(1, 2)
        k, v = self.k_norm(k).transpose(1, 2), v.transpose(1, 2)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=each > 1)
        x = x + self.proj(out.transpose(1, 2).reshape(b, s, -1))
        gate, up = self.gate_up(self.mlp_norm(x)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up)


class PlainTwin(nn.Module):
    def __init__(self, language: LanguageConfig, vocab_size: int) -> None:
        super().__init__()
        self.language = language
        self.embedding = nn.Embedding(vocab_size, language.hidden_size)
        self.blocks = nn.ModuleList(Block(language) for _ in range(language.num_layers))
        self.final_norm = nn.RMSNorm(language.hidden_size, language.norm_epsilon)
        self.output = nn.Linear(language.hidden_size, vocab_size, bias=False)

    def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
        """int64 `[b, s]` each -> sum of the token losses."""
        head = self.language.head_dim
        inverse = 1.0 / self.language.rotary_base ** (torch.arange(0, head, 2).float() / head)
        angles = torch.outer(torch.arange(tokens.size(1)).float(), inverse).repeat(1, 2)
        cos, sin = angles.cos(), angles.sin()
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x, cos, sin)
        return F.cross_entropy(self.output(self.final_norm(x)).flatten(0, 1), labels.flatten(), reduction="sum")

    @torch.no_grad()
    def copy_weights(self, model: nn.Module) -> None:
        """Take the weights of megatron-core's GPTModel (one rank, host layers). Raises KeyError where a name is missing."""
        theirs = {name: parameter.detach() for name, parameter in model.named_parameters()}
        names = {
            "embedding.weight": "embedding.word_embeddings.weight",
            "final_norm.weight": "decoder.final_layernorm.weight",
            "output.weight": "output_layer.weight",
        }
        parts = {
            "input_norm": "input_layernorm",
            "qkv": "self_attention.linear_qkv",
            "q_norm": "self_attention.q_layernorm",
            "k_norm": "self_attention.k_layernorm",
            "proj": "self_attention.linear_proj",
            "mlp_norm": "pre_mlp_layernorm",
            "gate_up": "mlp.linear_fc1",
            "down": "mlp.linear_fc2",
        }
        for layer in range(self.language.num_layers):
            for ours, other in parts.items():
                names[f"blocks.{layer}.{ours}.weight"] = f"decoder.layers.{layer}.{other}.weight"
        for name, parameter in self.named_parameters():
            parameter.copy_(theirs[names[name]])
