"""Layers of the host platform: attention over PyTorch's scaled_dot_product_attention, and norms.

megatron-core's local attention refuses packed sequences and its local norm refuses sequence parallelism; these take both.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.tensor_parallel.random import get_cuda_rng_tracker
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_vlm.models.context_row import ContextRow, Piece
from megatron_vlm.models.scored_row import ScoredRow


def _tag_replicated(norm: torch.nn.Module, config: TransformerConfig) -> torch.nn.Module:
    """Parameter dtype, and the tag by which megatron-core sums gradients over sequence-parallel ranks."""
    for parameter in norm.parameters():
        parameter.data = parameter.data.to(config.params_dtype)
        parameter.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]
    return norm


class HostRMSNorm:
    """RMSNorm over the last dimension."""

    def __new__(cls, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: Any) -> Any:
        return _tag_replicated(torch.nn.RMSNorm(hidden_size, eps=eps), config)


class _ZeroCenteredRMSNorm(torch.nn.Module):
    """x / rms(x) * (1 + weight), the product in fp32 as the Gemma family has it."""

    def __init__(self, hidden_size: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = torch.nn.Parameter(torch.zeros(hidden_size)), eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), x.shape[-1:], 1.0 + self.weight.float(), self.eps).type_as(x)


class HostZeroCenteredRMSNorm:
    """RMSNorm whose gain is kept as its distance from one (megatron-core's layernorm_zero_centered_gamma)."""

    def __new__(cls, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: Any) -> Any:
        return _tag_replicated(_ZeroCenteredRMSNorm(hidden_size, eps), config)


class HostLayerNorm:
    """LayerNorm with gain and bias."""

    def __new__(cls, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: Any) -> Any:
        return _tag_replicated(torch.nn.LayerNorm(hidden_size, eps=eps), config)


class HostGainLayerNorm:
    """LayerNorm with a gain and no bias (the open_lm / DCLM block)."""

    def __new__(cls, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: Any) -> Any:
        return _tag_replicated(torch.nn.LayerNorm(hidden_size, eps=eps, bias=False), config)


class DocumentGroups:
    """Documents of a packed row sorted into groups of like length, so that each group is one batched attention call.

    A group's documents are padded at their end to the longest of them; under a causal mask no real query sees the padding
    and padded queries are thrown away, so the numbers are those of each document alone. Without a causal mask only
    documents of equal length share a group. A call a document costs more in overhead than in arithmetic on short ones.
    """

    def __init__(self, cu_seqlens: Tensor, causal: bool) -> None:
        bounds = cu_seqlens.tolist()
        groups: dict[int, list[tuple[int, int]]] = {}
        for start, end in zip(bounds[:-1], bounds[1:], strict=True):
            if end > start:
                length = end - start
                # a document is padded by less than a third of its length: widths 1, 2, 3, 4, 6, 8, 12, 16, ...
                width = length if not causal else _next_width(length)
                groups.setdefault(width, []).append((start, length))
        #: per group: gather indices [documents * width], width, number of documents
        self.groups: list[tuple[Tensor, int, int]] = []
        #: where each position of the row stands in the concatenated group outputs
        self.inverse = torch.zeros(bounds[-1], dtype=torch.int64)
        self._offset = 0
        for documents in groups.values():
            width = max(length for _, length in documents)
            starts = torch.tensor([start for start, _ in documents]).unsqueeze(1)
            lengths = torch.tensor([length for _, length in documents]).unsqueeze(1)
            steps = torch.arange(width).unsqueeze(0)
            self._add(starts + torch.minimum(steps, lengths - 1), steps < lengths)

    @classmethod
    def of_places(cls, documents: Sequence[Tensor], positions: int) -> DocumentGroups:
        """Of a causal row of `positions` whose documents are given by their places, int64 each; they may have places in
        common at their beginning. What is in no document (padding) gets the output of another place."""
        made = cls(torch.tensor([0]), causal=True)
        made.inverse = torch.zeros(positions, dtype=torch.int64)
        groups: dict[int, list[Tensor]] = {}
        for places in documents:
            groups.setdefault(_next_width(len(places)), []).append(places)
        for members in groups.values():
            lengths = torch.tensor([len(places) for places in members]).unsqueeze(1)
            index = torch.nn.utils.rnn.pad_sequence(members, batch_first=True)
            made._add(index, torch.arange(index.size(1)).unsqueeze(0) < lengths)
        return made

    def to(self, device: torch.device) -> DocumentGroups:
        """Itself, its indices on the device of what they index."""
        self.groups = [(index.to(device), width, count) for index, width, count in self.groups]
        self.inverse = self.inverse.to(device)
        return self

    def _add(self, index: Tensor, real: Tensor) -> None:
        """A group: places `[documents, width]`, and which of them are the documents' own."""
        flat = index.reshape(-1)
        kept = torch.nonzero(real.reshape(-1)).squeeze(1)
        self.inverse[flat[kept]] = self._offset + kept
        self._offset += flat.numel()
        self.groups.append((flat, index.size(1), index.size(0)))


def _next_width(length: int) -> int:
    power = 1 << (length - 1).bit_length()
    return power * 3 // 4 if power >= 4 and length <= power * 3 // 4 else power


def document_groups(packed: PackedSeqParams, causal: bool, device: torch.device) -> DocumentGroups:
    """The groups of a packed row, made once and kept on it: every layer of a micro-batch asks for the same ones."""
    kept: dict[bool, DocumentGroups] = packed.__dict__.setdefault("_document_groups", {})
    if causal not in kept:
        if isinstance(packed, ScoredRow) and packed.documents is not None and causal:
            groups = DocumentGroups.of_places(packed.documents, packed.max_seqlen_q)
        else:
            groups = DocumentGroups(packed.cu_seqlens_q, causal)
        kept[causal] = groups.to(device)
    return kept[causal]


class HostAttention(MegatronModule):
    """Core attention by torch's scaled_dot_product_attention.

    Takes `[s, b, heads, d]`, or packed `[t, heads, d]` with PackedSeqParams of format thd, where no position attends
    across a document border, or with a ContextRow, which is a part of such a row. Fewer key/value heads than query heads are
    grouped-query attention.
    """

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        attention_dropout: float | None = None,
        softmax_scale: float | None = None,
        **_: Any,
    ) -> None:
        super().__init__(config=config)
        self.attn_mask_type = attn_mask_type
        self.softmax_scale = softmax_scale
        self.dropout = config.attention_dropout if attention_dropout is None else attention_dropout

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, causal: bool, mask: Tensor | None = None) -> Tensor:
        """`[b, heads, s, d]` -> the same."""
        dropout = self.dropout if self.training else 0.0

        def call() -> Tensor:
            return F.scaled_dot_product_attention(
                query,
                key,
                value,
                attn_mask=mask,
                is_causal=causal and mask is None and query.size(2) > 1,
                dropout_p=dropout,
                scale=self.softmax_scale,
                enable_gqa=query.size(1) != key.size(1),
            )

        if dropout and not self.config.sequence_parallel:
            with get_cuda_rng_tracker().fork():  # different masks on tensor-parallel ranks, which hold different heads
                return call()
        return call()

    def _attend_groups(self, query: Tensor, key: Tensor, value: Tensor, causal: bool, plan: DocumentGroups) -> Tensor:
        outputs = []
        for index, width, count in plan.groups:
            q, k, v = (
                t.index_select(0, index).view(count, width, *t.shape[1:]).transpose(1, 2) for t in (query, key, value)
            )
            out = self._attend(q, k, v, causal)  # [documents, heads, width, d]
            outputs.append(out.transpose(1, 2).reshape(count * width, -1))
        return torch.cat(outputs).index_select(0, plan.inverse)

    def _attend_pieces(self, query: Tensor, key: Tensor, value: Tensor, row: ContextRow) -> Tensor:
        """Of a part of a row, with the keys and values that its pieces attend to."""
        outputs: list[Tensor] = []
        asked = given = 0
        for piece in row.pieces:
            queries, keys = slice(asked, asked + sum(piece.queries)), slice(given, given + sum(piece.keys))
            outputs += self._attend_piece(query[queries], key[keys], value[keys], piece)
            asked, given = queries.stop, keys.stop
        return torch.cat(outputs)

    def _attend_piece(self, query: Tensor, key: Tensor, value: Tensor, piece: Piece) -> Iterator[Tensor]:
        """A document that goes on by itself, under a mask of its own, then the others."""
        queries = keys = 0
        if piece.carried_on:
            queries, keys = piece.queries[0], piece.keys[0]
            mask = torch.ones(queries, keys, dtype=torch.bool, device=query.device).tril(keys - queries)
            q, k, v = (t.transpose(0, 1).unsqueeze(0) for t in (query[:queries], key[:keys], value[:keys]))
            out = self._attend(q, k, v, True, mask)  # [1, heads, queries, d]
            yield out[0].transpose(0, 1).reshape(queries, -1)
        if queries < len(query):
            plan: dict[str, DocumentGroups] = piece.__dict__
            if "_groups" not in plan:  # made once for all layers, as of a row that is whole
                others = [0, *accumulate(piece.queries[piece.carried_on :])]
                plan["_groups"] = DocumentGroups(torch.tensor(others), causal=True).to(query.device)
            yield self._attend_groups(query[queries:], key[keys:], value[keys:], True, plan["_groups"])

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: Tensor | None = None,
        packed_seq_params: PackedSeqParams | None = None,
    ) -> Tensor:
        """Returns `[s, b, heads * d]`, or `[t, heads * d]` for packed rows."""
        if isinstance(packed_seq_params, ContextRow):
            keys, values = packed_seq_params.whole(key, value)
            return self._attend_pieces(query, keys, values, packed_seq_params)
        causal = (attn_mask_type or self.attn_mask_type) in (AttnMaskType.causal, AttnMaskType.padding_causal)
        if packed_seq_params is not None and packed_seq_params.qkv_format == "thd":
            plan = document_groups(packed_seq_params, causal, query.device)
            return self._attend_groups(query, key, value, causal, plan)
        mask = ~attention_mask if attention_mask is not None and not causal else None
        q, k, v = (t.permute(1, 2, 0, 3) for t in (query, key, value))
        out = self._attend(q, k, v, causal, mask)
        return out.permute(2, 0, 1, 3).reshape(query.size(0), query.size(1), -1)
