"""Floating-point operations of the model, counted exactly from its shapes and the documents of a batch.

A product of `[m, k]` and `[k, n]` is 2*m*k*n. Attention is counted as what a causal document needs: half of its square,
diagonal included. The backward pass is twice the forward; parts that no gradient reaches have none. Recomputation is not
counted (model FLOPs, not hardware FLOPs).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from megatron_vlm.config.model import ModelConfig


@dataclass(frozen=True)
class BatchShape:
    """What a step's cost depends on: positions (padding included), documents' lengths, pictures."""

    positions: int
    document_lengths: tuple[int, ...]
    pictures: int


def language_forward_flops(model: ModelConfig, vocab_size: int, positions: int, lengths: Iterable[int]) -> int:
    """Language blocks and the output layer, forward, packed documents."""
    language = model.language
    hidden, heads, groups, head = (
        language.hidden_size,
        language.num_attention_heads,
        language.query_groups,
        language.head_dim,
    )
    qkv = 2 * positions * hidden * (heads + 2 * groups) * head
    out = 2 * positions * heads * head * hidden
    pairs = sum(n * (n + 1) // 2 for n in lengths)  # query-key pairs that a causal document has
    attention = 2 * 2 * pairs * heads * head  # scores, and the weighted sum of values
    up = 2 if language.activation == "swiglu" else 1
    mlp = 2 * positions * hidden * language.ffn_width * (up + 1)
    return language.num_layers * (qkv + out + attention + mlp) + 2 * positions * hidden * vocab_size


def vision_forward_flops(model: ModelConfig, pictures: int) -> int:
    """Patch embedding and layers of the encoder, forward."""
    vision = model.vision
    tokens = vision.patches + vision.prefix_tokens
    hidden, width = vision.hidden_size, vision.ffn_width
    patches = 2 * vision.patches * 3 * vision.patch_size**2 * hidden
    up = 2 if vision.activation == "swiglu" else 1
    layer = 2 * tokens * hidden * 4 * hidden + 4 * tokens * tokens * hidden + 2 * tokens * hidden * width * (up + 1)
    return pictures * (patches + (vision.num_layers - vision.skip_last_layers) * layer)


def projector_forward_flops(model: ModelConfig, pictures: int) -> int:
    projector = model.projector
    size = model.vision.hidden_size * projector.pixel_shuffle**2
    out = model.language.hidden_size
    width = projector.hidden_size or out
    matrices = {
        "linear": size * out,
        "mlp2": size * width + width * out,
        "mlp3": size * width + width**2 + width * out,
    }
    return 2 * pictures * model.image_tokens * matrices[projector.kind]


def step_flops(model: ModelConfig, vocab_size: int, batch: BatchShape, frozen: Iterable[str] = ()) -> int:
    """Forward and backward of one step over `batch` (a global batch gives the whole step's).

    `frozen` names modules without gradient: a frozen module has no weight gradients, and a frozen encoder, below which
    nothing learns, no backward at all.
    """
    frozen = set(frozen)
    language = language_forward_flops(model, vocab_size, batch.positions, batch.document_lengths)
    projector = projector_forward_flops(model, batch.pictures)
    vision = vision_forward_flops(model, batch.pictures)
    below_learns = batch.pictures > 0 and not {"vision", "projector"} <= frozen
    total = language * (3 if "language" not in frozen else 1 + below_learns)
    encoder_learns = "vision" not in frozen
    if "projector" not in frozen:
        total += projector * (3 if encoder_learns else 2)
    else:
        total += projector * (2 if encoder_learns else 1)
    return total + vision * (3 if encoder_learns else 1)
