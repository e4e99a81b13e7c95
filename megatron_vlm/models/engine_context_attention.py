"""Transformer Engine's attention over a context-parallel rank's part of a packed row."""

from __future__ import annotations

from typing import Any

import transformer_engine.pytorch as te
from megatron.core.extensions.transformer_engine import TEDotProductAttention
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_vlm.models.context_row import ContextRow


class EngineContextAttention(TEDotProductAttention):
    """megatron-core's wrapper of Transformer Engine's attention, which also takes a ContextRow.

    megatron-core's mask types have no causal mask of packed documents that is aligned at the bottom right, which a document
    that goes on needs, so Transformer Engine is called past its wrapper there. Written by Transformer Engine's
    documentation; run by nobody yet.
    """

    def __init__(
        self, config: TransformerConfig, layer_number: int, attn_mask_type: AttnMaskType, attention_type: str, **options: Any
    ) -> None:
        # "self" lets its kernels in plain PyTorch take the borders of the queries for those of the keys
        super().__init__(config, layer_number, attn_mask_type, "cross", **options)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        attn_mask_type: AttnMaskType,
        attention_bias: Tensor | None = None,
        packed_seq_params: PackedSeqParams | None = None,
        **options: Any,
    ) -> Tensor:
        """As of the wrapper: packed `[t, heads, d]` -> `[t, heads * d]`."""
        if isinstance(packed_seq_params, ContextRow):
            assert packed_seq_params.attended is not None
            keys, values = packed_seq_params.whole(key, value)
            return self.attend(query, keys, values, packed_seq_params.attended)
        out: Tensor = super().forward(
            query, key, value, attention_mask, attn_mask_type, attention_bias, packed_seq_params, **options
        )
        return out

    def attend(self, query: Tensor, key: Tensor, value: Tensor, documents: PackedSeqParams) -> Tensor:
        """Of documents whose queries and keys end together."""
        out: Tensor = te.DotProductAttention.forward(
            self,
            query,
            key,
            value,
            qkv_format="thd",
            cu_seqlens_q=documents.cu_seqlens_q,
            cu_seqlens_kv=documents.cu_seqlens_kv,
            max_seqlen_q=documents.max_seqlen_q,
            max_seqlen_kv=documents.max_seqlen_kv,
            attn_mask_type="padding_causal_bottom_right",
        )
        return out
