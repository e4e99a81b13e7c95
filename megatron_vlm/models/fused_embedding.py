"""The word embedding that lays picture rows between its words, in one pass and one reduction."""

from __future__ import annotations

import torch
from megatron.core.tensor_parallel.layers import VocabParallelEmbedding
from megatron.core.tensor_parallel.mappings import (
    reduce_from_tensor_model_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
)
from torch import Tensor

from megatron_vlm.ops.fuse import fuse_embeddings


class FusedEmbedding(VocabParallelEmbedding):
    """megatron-core's vocabulary-parallel embedding, whose output holds picture rows in place of their placeholders.

    Tensor-parallel ranks each write the words of their shard, the first of them the picture rows too, and their sum is the
    decoder's input: reduced, or under sequence parallelism reduced and scattered, which moves half as much as reducing the
    whole and then splitting it.
    """

    @classmethod
    def of(cls, embedding: VocabParallelEmbedding) -> FusedEmbedding:
        """The same module, with this class's forward.

        Weight, sharded state and the hooks that megatron-core's data parallelism hangs on this very module all stay; a
        second module would need a second weight, or would leave those hooks on the first.
        """
        embedding.__class__ = cls
        return embedding

    def forward(self, tokens: Tensor, rows: Tensor | None, row_index: Tensor, sequence_parallel: bool) -> Tensor:
        """Tokens int64 `[b, s]`, picture rows `[n, h]` (the same on every rank) and row_index int32 `[b, s]` ->
        `[s, b, h]`, or `[s / tp, b, h]` under sequence parallelism."""
        out = fuse_embeddings(
            tokens,
            self.weight,
            rows,
            row_index,
            vocab_start=self.vocab_start_index,
            vocab_size=self.num_embeddings,
            rows_here=torch.distributed.get_rank(self.tp_group) == 0,
        )
        if sequence_parallel:
            return reduce_scatter_to_sequence_parallel_region(out, group=self.tp_group)
        return reduce_from_tensor_model_parallel_region(out, group=self.tp_group)
