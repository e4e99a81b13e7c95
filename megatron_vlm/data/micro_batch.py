"""Packs into the tensors of one micro-batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from megatron_vlm.config.data import TokenCounts
from megatron_vlm.data.documents import DocumentSource, Span
from megatron_vlm.data.pictures import decode_picture
from megatron_vlm.ops.assemble import MODALITY_CAPTION, MODALITY_TEXT, PackedBatch, Segment, assemble_packs


@dataclass(frozen=True)
class MicroBatch:
    """A row of packs laid end to end, t = packs * sequence_length positions.

    tokens, labels, position_ids int64 `[1, t]`; loss_mask fp32 `[1, t]`; label_modality uint8 `[1, t]`; cu_seqlens int32
    `[documents + 1]`; image_slots int64 `[pictures * image_tokens]`; pixels uint8 `[pictures, size, size, 3]`, or None on
    ranks that hold no encoder.
    """

    tokens: Tensor
    labels: Tensor
    loss_mask: Tensor
    position_ids: Tensor
    label_modality: Tensor
    cu_seqlens: Tensor
    max_seqlen: int
    image_slots: Tensor
    pixels: Tensor | None
    #: lengths of the documents, for the count of operations
    document_lengths: tuple[int, ...]
    pictures: int

    def to(self, device: torch.device) -> MicroBatch:
        if device.type == "cpu":
            return self
        moved = {
            name: value.to(device, non_blocking=True) for name, value in self.__dict__.items() if isinstance(value, Tensor)
        }
        return MicroBatch(**{**self.__dict__, **moved})


def make_micro_batch(
    segments: Sequence[Sequence[Segment]],
    pixels: Sequence[np.ndarray] | None,
    sequence_length: int,
    tokens: TokenCounts,
    image_tokens: int,
    image_size: int,
) -> MicroBatch:
    """Segments of each pack and the decoded pictures in reading order (None: this rank holds no encoder)."""
    batch: PackedBatch = assemble_packs(
        segments, sequence_length=sequence_length, image_token_id=tokens.image_token_id, pad_id=tokens.pad_id
    )
    lengths = np.diff(batch.cu_seqlens)
    stacked = None
    if pixels is not None:
        shape = (0, image_size, image_size, 3)
        stacked = torch.from_numpy(np.stack(pixels)) if pixels else torch.empty(shape, dtype=torch.uint8)
    return MicroBatch(
        tokens=torch.from_numpy(batch.tokens).unsqueeze(0),
        labels=torch.from_numpy(batch.labels).unsqueeze(0),
        loss_mask=torch.from_numpy(batch.loss_mask).unsqueeze(0),
        position_ids=torch.from_numpy(batch.position_ids).unsqueeze(0),
        label_modality=torch.from_numpy(batch.label_modality).unsqueeze(0),
        cu_seqlens=torch.from_numpy(batch.cu_seqlens),
        max_seqlen=batch.max_seqlen,
        image_slots=torch.from_numpy(batch.image_slots),
        pixels=stacked,
        document_lengths=tuple(int(n) for n in lengths),
        pictures=len(batch.image_slots) // image_tokens,
    )


class MicroBatchMaker:
    """Reads the spans of packs from their sources and assembles them."""

    def __init__(
        self,
        sources: Sequence[DocumentSource],
        sequence_length: int,
        tokens: TokenCounts,
        image_tokens: int,
        image_size: int,
        decode_pictures: bool,
    ) -> None:
        self.sources, self.sequence_length, self.tokens = tuple(sources), sequence_length, tokens
        self.image_tokens, self.image_size, self.decode_pictures = image_tokens, image_size, decode_pictures

    def segment(self, span: Span) -> tuple[Segment, list[np.ndarray]]:
        """A span's ids, and its pictures decoded (none on ranks without an encoder)."""
        source = self.sources[span.source]
        ids, sequences = source.ids(span.document, span.start, span.length + 1)
        modality = MODALITY_CAPTION if source.pictures[span.document] else MODALITY_TEXT
        pictures = []
        if self.decode_pictures:
            for sequence in sequences:
                where = f"{source.reader.prefix}, document {span.document}"
                pictures.append(decode_picture(source.reader.image_bytes(sequence), self.image_size, where))
        return Segment(ids, modality), pictures

    def __call__(self, packs: Sequence[Sequence[Span]]) -> MicroBatch:
        segments: list[list[Segment]] = []
        pictures: list[np.ndarray] = []
        for pack in packs:
            segments.append([])
            for span in pack:
                segment, found = self.segment(span)
                segments[-1].append(segment)
                pictures.extend(found)
        return make_micro_batch(
            segments,
            pictures if self.decode_pictures else None,
            self.sequence_length,
            self.tokens,
            self.image_tokens,
            self.image_size,
        )
