"""A micro-batch shared by context-parallel ranks: each computes two pieces of its row."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from megatron.core import parallel_state
from megatron.core.packed_seq_params import PackedSeqParams

from megatron_vlm.data.micro_batch import MicroBatch
from megatron_vlm.models.context_row import ContextRow
from megatron_vlm.models.language import packed_row

#: fields of a micro-batch that have a value for each position
_OF_POSITIONS = ("tokens", "labels", "loss_mask", "position_ids", "label_modality", "token_modality", "row_index")


def context_share(batch: MicroBatch) -> tuple[MicroBatch, PackedSeqParams]:
    """This rank's part of a micro-batch, and what its layers attend to.

    Pictures are those of the whole, which the ranks share out among themselves (`PictureEncoding`); `row_index` says which
    of their rows stand in the part. Without context parallelism the part is the whole.
    """
    group = parallel_state.get_context_parallel_group()
    if group.size() == 1:
        return batch, packed_row(batch.cu_seqlens, batch.max_seqlen)
    row = ContextRow.of(batch.document_lengths, group, batch.tokens.device)
    of_positions: dict[str, Any] = {name: row.share(getattr(batch, name)) for name in _OF_POSITIONS}
    part = replace(batch, **of_positions)
    row.position_ids = part.position_ids[0]
    return part, row
