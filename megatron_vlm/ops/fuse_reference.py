"""Fusing image rows into word rows, in plain PyTorch: what the native operators are compared with, and what serves
where they are not built."""

from __future__ import annotations

import torch
from torch import Tensor


def fuse_embeddings_reference(
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
    """`fuse_embeddings` without its fault checks: the same arguments, and the same result to the bit."""
    tokens = tokens[:, first_position : first_position + positions].transpose(0, 1)  # [positions, b]
    row_index = row_index[:, first_position : first_position + positions].transpose(0, 1)
    is_row = row_index >= 0
    local = tokens - vocab_start
    is_word = ~is_row & (local >= 0) & (local < weight.size(0))
    out = torch.where(
        is_word.unsqueeze(-1), torch.nn.functional.embedding(local.masked_fill(~is_word, 0), weight), weight.new_zeros(())
    )
    if rows_here and rows.size(0):
        picked = rows.index_select(0, row_index.clamp(min=0).reshape(-1)).view(*row_index.shape, rows.size(1))
        out = torch.where(is_row.unsqueeze(-1), picked, out)
    return out.contiguous()


def fuse_embeddings_backward_reference(
    gradient: Tensor,
    tokens: Tensor,
    row_index: Tensor,
    vocab_rows: int,
    row_count: int,
    vocab_start: int,
    first_position: int,
) -> tuple[Tensor, Tensor]:
    """Gradients of `weight` `[vocab_rows, h]` and of `rows` `[row_count, h]`; each sum over positions is taken in fp32 (fp64
    for fp64) in the order of the flattened `[positions, b]`, and rounded once."""
    positions, batch, hidden = gradient.shape
    flat = gradient.reshape(-1, hidden)
    tokens = tokens[:, first_position : first_position + positions].transpose(0, 1).reshape(-1)
    row_index = row_index[:, first_position : first_position + positions].transpose(0, 1).reshape(-1)
    wide = torch.float64 if gradient.dtype == torch.float64 else torch.float32
    local = tokens - vocab_start
    is_word = (row_index < 0) & (local >= 0) & (local < vocab_rows)
    of_weight = torch.zeros(vocab_rows + 1, hidden, dtype=wide, device=gradient.device)
    of_weight.index_add_(0, torch.where(is_word, local, vocab_rows), flat.to(wide))
    of_rows = torch.zeros(row_count + 1, hidden, dtype=gradient.dtype, device=gradient.device)
    of_rows.index_copy_(0, torch.where(row_index >= 0, row_index.long(), row_count), flat)
    return of_weight[:vocab_rows].to(gradient.dtype), of_rows[:row_count]
