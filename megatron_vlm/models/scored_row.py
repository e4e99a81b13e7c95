"""A packed row that is scored: which positions need logits, and which documents share what they begin with."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from megatron.core import parallel_state
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.tensor_parallel.mappings import gather_from_sequence_parallel_region
from torch import Tensor


@dataclass
class ScoredRow(PackedSeqParams):
    """megatron-core's PackedSeqParams, with what scoring asks for beside.

    Attributes:
        scored: int64 `[n]`, positions of the row of which the last stage gives logits; one may stand there several times,
            where several documents go on from it. Under sequence parallelism n is a multiple of the ranks.
        documents: places in the row of each document's positions, int64 each. Documents may have places in common at their
            beginning: what stands there attends to nothing that differs. The host's attention alone reads this; without it
            documents are those of `cu_seqlens`.
        position_ids: int64 `[t]`, the distance of each place from its document's beginning; given with `documents`.
    """

    scored: Tensor | None = None
    documents: list[Tensor] | None = None
    position_ids: Tensor | None = None

    @classmethod
    def of_borders(cls, scored: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> ScoredRow:
        """Documents end to end, none of which share anything; `cu_seqlens` int32 `[documents + 1]`."""
        return cls(
            qkv_format="thd",
            cu_seqlens_q=cu_seqlens,
            cu_seqlens_kv=cu_seqlens,
            max_seqlen_q=max_seqlen,
            max_seqlen_kv=max_seqlen,
            scored=scored,
        )

    @classmethod
    def of_places(cls, scored: Tensor, documents: list[Tensor], position_ids: Tensor) -> ScoredRow:
        """Documents by their places. To megatron-core the row is one sequence, whose rotary angles are `rotary`'s."""
        length = position_ids.numel()
        row = cls.of_borders(scored, torch.tensor([0, length], dtype=torch.int32), length)
        row.documents, row.position_ids = documents, position_ids
        return row

    def rotary(self, angles: Tensor) -> Tensor:
        """Angles of positions 0, 1, ... `[t, 1, 1, d]` into those of the row's places."""
        return angles if self.position_ids is None else angles.index_select(0, self.position_ids)

    def hidden(self, states: Tensor, sequence_parallel: bool) -> Tensor:
        """Hidden states `[t, 1, h]` of the places in `scored`, `[n, 1, h]`; split over tensor-parallel ranks before and
        after under sequence parallelism, as the output layer takes them."""
        if self.scored is None:
            return states
        if not sequence_parallel:
            return states.index_select(0, self.scored)
        group = parallel_state.get_tensor_model_parallel_group()
        whole = gather_from_sequence_parallel_region(states, tensor_parallel_output_grad=False, group=group)
        return whole.index_select(0, self.scored.chunk(group.size())[group.rank()])
