"""Transformer Engine's attention over pieces of a packed row is that of its documents, on one GPU: no rank is needed for it.

Tolerance: bf16 values of about one, 2^-8 apart, and gradients summed over up to 300 queries.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from megatron_vlm.models.context_row import attended
from tests.gpu.needed import ON_A_GPU, need_engine
from tests.models.test_context_row import _places, _ranks
from tests.models.test_host_layers import GROUPS, HEADS, _document_by_document, _row

pytestmark = ON_A_GPU

SIZE = 64
#: a document over several pieces, short ones, and one that ends with the row
LENGTHS = [300, 7, 90, 1, 114]


@pytest.mark.parametrize("kernels", ["chosen", "plain"])
@pytest.mark.parametrize("ranks", [2, 4])
def test_pieces_attend_as_documents_do(ranks: int, kernels: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the kernels that Transformer Engine chooses, and by its own in plain PyTorch."""
    need_engine()
    import transformer_engine.pytorch as te

    from megatron_vlm.models.engine_context_attention import EngineContextAttention

    if kernels == "plain":
        for name in ("NVTE_FLASH_ATTN", "NVTE_FUSED_ATTN"):
            monkeypatch.setenv(name, "0")
    attention: Any = te.DotProductAttention(
        HEADS, SIZE, num_gqa_groups=GROUPS, attention_dropout=0.0, qkv_format="thd", attention_type="cross"
    )
    ours = [t.detach().cuda().bfloat16().requires_grad_() for t in _row(LENGTHS, size=SIZE)]
    theirs = [t.detach().float().requires_grad_() for t in ours]
    query, key, value = ours
    out = torch.zeros(sum(LENGTHS), HEADS * SIZE, device=query.device, dtype=query.dtype)
    for pieces in _ranks(LENGTHS, ranks):
        asked, given = _places(pieces)
        part = EngineContextAttention.attend(
            attention, query[asked], key[given], value[given], attended(pieces, query.device)
        )
        out = out.index_put((asked.to(out.device),), part)
    alone = _document_by_document(theirs, LENGTHS, causal=True)
    torch.testing.assert_close(out.float(), alone, rtol=2e-2, atol=2e-2)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.device)
    (out.float() * weight).sum().backward()
    (alone * weight).sum().backward()
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad.float(), other.grad, rtol=5e-2, atol=1e-1)
