"""Transformer Engine's attention over pieces of a packed row is that of its documents, on one GPU: no rank is needed for it.

Tolerance: bf16 values of about one, 2^-8 apart, and gradients summed over up to 300 queries.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from megatron_vlm.models.context_row import Piece, piece_bounds
from tests.gpu.needed import ON_A_GPU, need_engine
from tests.models.test_host_layers import GROUPS, HEADS, _document_by_document, _row

pytestmark = ON_A_GPU

SIZE = 64
#: a document over several pieces, short ones, and one that ends with the row
LENGTHS = [300, 7, 90, 1, 114]


@pytest.mark.parametrize("ranks", [2, 4])
def test_pieces_attend_as_documents_do(ranks: int) -> None:
    need_engine()
    import transformer_engine.pytorch as te

    from megatron_vlm.models.engine_context_attention import EngineContextAttention

    attention: Any = te.DotProductAttention(HEADS, SIZE, num_gqa_groups=GROUPS, attention_dropout=0.0, qkv_format="thd")
    ours = [t.detach().cuda().bfloat16().requires_grad_() for t in _row(LENGTHS, size=SIZE)]
    theirs = [t.detach().float().requires_grad_() for t in ours]
    query, key, value = ours
    parts: dict[int, torch.Tensor] = {}
    for rank in range(ranks):
        for begin, end in piece_bounds(sum(LENGTHS), rank, ranks):
            piece = Piece.of(LENGTHS, begin, end, query.device)
            keys = slice(piece.first, piece.end)
            parts[begin] = EngineContextAttention._attend_piece(attention, query[begin:end], key[keys], value[keys], piece)
    out = torch.cat([parts[begin] for begin in sorted(parts)])
    alone = _document_by_document(theirs, LENGTHS, causal=True)
    torch.testing.assert_close(out.float(), alone, rtol=2e-2, atol=2e-2)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.device)
    (out.float() * weight).sum().backward()
    (alone * weight).sum().backward()
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad.float(), other.grad, rtol=5e-2, atol=1e-1)
