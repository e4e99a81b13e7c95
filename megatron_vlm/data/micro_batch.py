"""Packs into the tensors of one micro-batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from megatron_vlm.config.data import TokenCounts
from megatron_vlm.data.documents import DocumentSource, Span
from megatron_vlm.data.pictures import decode_picture
from megatron_vlm.ops.assemble import (
    BatchBuffers,
    PackedBatch,
    Segment,
    assemble_packs,
)
from megatron_vlm.ops.assemble_spans import assemble_spans
from megatron_vlm.ops.native import NativeOperators, native_operators


@dataclass(frozen=True)
class MicroBatch:
    """A row of packs laid end to end, t = packs * sequence_length positions.

    tokens, labels, position_ids int64 `[1, t]`; loss_mask fp32 `[1, t]`; label_modality, token_modality uint8 `[1, t]`;
    row_index int32 `[1, t]`, the picture row that stands at a position or -1; cu_seqlens int32 `[documents + 1]`; pixels
    uint8 `[pictures, size, size, 3]`, or None on ranks that hold no encoder.
    """

    tokens: Tensor
    labels: Tensor
    loss_mask: Tensor
    position_ids: Tensor
    label_modality: Tensor
    token_modality: Tensor
    row_index: Tensor
    cu_seqlens: Tensor
    max_seqlen: int
    pixels: Tensor | None
    #: lengths of the documents, for the count of operations
    document_lengths: tuple[int, ...]
    pictures: int
    #: placeholders of all pictures together
    image_rows: int

    @property
    def image_tokens(self) -> int | None:
        """Placeholders of each picture; None without pictures."""
        return self.image_rows // self.pictures if self.pictures else None

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
    batch = assemble_packs(
        segments, sequence_length=sequence_length, image_token_id=tokens.image_token_id, pad_id=tokens.pad_id
    )
    return _as_tensors(batch, pixels, image_tokens, image_size)


def _as_tensors(batch: PackedBatch, pixels: Sequence[np.ndarray] | None, image_tokens: int, image_size: int) -> MicroBatch:
    stacked, pictures = None, batch.image_rows // image_tokens
    if pixels is not None:
        if len(pixels) != pictures:
            raise ValueError(f"{len(pixels)} pictures for the {batch.image_rows} placeholders of {pictures}")
        shape = (0, image_size, image_size, 3)
        stacked = torch.from_numpy(np.stack(pixels)) if pixels else torch.empty(shape, dtype=torch.uint8)
    rows = {name: torch.from_numpy(getattr(batch, name)).unsqueeze(0) for name in BatchBuffers.dtypes()}
    return MicroBatch(
        **rows,
        cu_seqlens=torch.from_numpy(batch.cu_seqlens),
        max_seqlen=batch.max_seqlen,
        pixels=stacked,
        document_lengths=tuple(np.diff(batch.cu_seqlens).tolist()),
        pictures=pictures,
        image_rows=batch.image_rows,
    )


def _pinned(positions: int) -> BatchBuffers:
    """Buffers from which a copy to a GPU runs beside everything else."""
    dtypes = {np.int64: torch.int64, np.int32: torch.int32, np.float32: torch.float32, np.uint8: torch.uint8}
    arrays = (torch.empty(positions, dtype=dtypes[d], pin_memory=True).numpy() for d in BatchBuffers.dtypes().values())
    return BatchBuffers(*arrays)


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
        pin_memory: bool = False,
    ) -> None:
        self.sources, self.sequence_length, self.tokens = tuple(sources), sequence_length, tokens
        self.image_tokens, self.image_size, self.decode_pictures = image_tokens, image_size, decode_pictures
        self.pin_memory = pin_memory

    def __call__(self, packs: Sequence[Sequence[Span]]) -> MicroBatch:
        """
        Raises:
            DataError: a text id that must not be there, or a picture that does not decode, naming the document.
        """
        native = native_operators()
        batch, pictures = self._assemble(native, packs) if native else self._assemble_reference(packs)
        pixels = [self._decode(*place) for place in pictures] if self.decode_pictures else None
        return _as_tensors(batch, pixels, self.image_tokens, self.image_size)

    def _assemble(
        self, native: NativeOperators, packs: Sequence[Sequence[Span]]
    ) -> tuple[PackedBatch, list[tuple[int, int]]]:
        """The batch, and the source and sequence of each of its pictures in reading order."""
        indexed = [source.indexed for source in self.sources]
        rows = [(span.source, span.document, span.start, span.length) for pack in packs for span in pack]
        spans: npt.NDArray[np.int64] = np.array(rows, np.int64).reshape(-1, 4)
        batch, pictures, fault = assemble_spans(
            native,
            [source for source in indexed if source is not None],
            spans,
            np.array([len(pack) for pack in packs], np.int64),
            sequence_length=self.sequence_length,
            image_token_id=self.tokens.image_token_id,
            pad_id=self.tokens.pad_id,
            eod_id=self.tokens.eod_id,
            vocab_size=self.tokens.vocab_size,
            buffers=_pinned(len(packs) * self.sequence_length) if self.pin_memory else None,
        )
        if fault is not None:
            source, document, _, _ = rows[fault.span]
            raise self.sources[source].wrong_id(document, fault.token_id)
        return batch, [(int(source), int(sequence)) for source, sequence in pictures]

    def _assemble_reference(self, packs: Sequence[Sequence[Span]]) -> tuple[PackedBatch, list[tuple[int, int]]]:
        """The same by numpy, document by document."""
        segments: list[list[Segment]] = []
        pictures: list[tuple[int, int]] = []
        for pack in packs:
            segments.append([])
            for span in pack:
                source = self.sources[span.source]
                segment, sequences = source.segment(span.document, span.start, span.length)
                segments[-1].append(segment)
                pictures += [(span.source, sequence) for sequence in sequences]
        batch = assemble_packs(
            segments,
            sequence_length=self.sequence_length,
            image_token_id=self.tokens.image_token_id,
            pad_id=self.tokens.pad_id,
        )
        return batch, pictures

    def _decode(self, source: int, sequence: int) -> npt.NDArray[np.uint8]:
        reader = self.sources[source].reader
        document = int(np.searchsorted(reader.document_indices, sequence, side="right")) - 1
        where = f"{reader.prefix}, document {document}"
        return decode_picture(reader.image_bytes(sequence), self.image_size, where)
