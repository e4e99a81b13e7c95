"""fuse_embeddings by the kernels of csrc/cuda: what is allocated and sorted around them."""

from __future__ import annotations

import torch
from torch import Tensor

from megatron_vlm.ops.kernels import Kernels


def forward(
    kernels: Kernels,
    fault: Tensor,
    stream: int,
    tokens: Tensor,
    weight: Tensor,
    rows: Tensor,
    row_index: Tensor,
    vocab_start: int,
    vocab_size: int,
    first_position: int,
    positions: int,
    rows_here: bool,
) -> Tensor:
    out = weight.new_empty(positions, tokens.size(0), weight.size(1))
    kernels.fuse_forward(
        out,
        tokens.contiguous(),
        row_index.contiguous(),
        weight.contiguous(),
        rows.contiguous(),
        first_position=first_position,
        vocab_start=vocab_start,
        vocab_size=vocab_size,
        rows_here=rows_here,
        fault=fault,
        stream=stream,
    )
    return out


def backward(
    kernels: Kernels,
    fault: Tensor,
    stream: int,
    gradient: Tensor,
    tokens: Tensor,
    row_index: Tensor,
    vocab_rows: int,
    row_count: int,
    vocab_start: int,
    first_position: int,
    of_weight: bool,
    of_rows: bool,
) -> tuple[Tensor, Tensor]:
    positions, _, hidden = gradient.shape
    gradient, row_index = gradient.contiguous(), row_index.contiguous()
    weight_gradient = gradient.new_empty(vocab_rows if of_weight else 0, hidden)
    row_gradient = gradient.new_empty(row_count if of_rows else 0, hidden)
    if of_weight:
        here = slice(first_position, first_position + positions)
        local = tokens[:, here] - vocab_start
        elsewhere = (row_index[:, here] >= 0) | (local < 0) | (local >= vocab_rows)
        # words that are not this shard's are sorted behind it, where the kernel passes them over
        flat = local.masked_fill(elsewhere, vocab_rows).t().reshape(-1)
        words, places = torch.sort(flat, stable=True)
        kernels.fuse_backward_weight(weight_gradient, gradient, words, places, stream=stream)
    if of_rows:
        workspace = row_index.new_empty(row_count, dtype=torch.int64)
        kernels.fuse_backward_rows(
            row_gradient, workspace, gradient, row_index, first_position=first_position, fault=fault, stream=stream
        )
    return weight_gradient, row_gradient
