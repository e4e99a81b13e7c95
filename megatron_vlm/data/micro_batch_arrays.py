"""Spans of packs into the arrays of one micro-batch. Nothing here imports torch, so that a worker starts at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from megatron_vlm.config.data import TokenCounts
from megatron_vlm.config.steps import StepShape
from megatron_vlm.data.broken_pictures import BrokenPicture
from megatron_vlm.data.decoding.decoder import Decoder
from megatron_vlm.data.documents import Span
from megatron_vlm.data.indexed_reader import IndexedReader
from megatron_vlm.errors import DataError
from megatron_vlm.ops.assemble import BatchBuffers, PackedBatch, Segment, assemble_packs
from megatron_vlm.ops.assemble_spans import IndexedSource, assemble_spans
from megatron_vlm.ops.native import NativeOperators, native_operators

Pixels = npt.NDArray[np.uint8]


class SpanSource(Protocol):
    """A dataset as its spans are read: `DocumentSource`, or a worker's own (`data/loader/span_source.py`)."""

    @property
    def reader(self) -> IndexedReader: ...

    def indexed_at(self, image_tokens: int) -> IndexedSource | None: ...

    def segment(
        self, document: int, start: int, positions: int, image_tokens: int | None = None
    ) -> tuple[Segment, list[int]]: ...

    def wrong_id(self, document: int, token_id: int) -> DataError: ...


@dataclass(frozen=True, slots=True, eq=False)
class MicroBatchArrays:
    """What a micro-batch is made of, before it is tensors.

    Attributes:
        batch: the flat arrays of its positions.
        pixels: uint8 `[pictures, size, size, 3]` in reading order; None where none are read.
        broken: pictures that did not decode.
    """

    batch: PackedBatch
    pixels: Pixels | None
    pictures: int
    broken: tuple[BrokenPicture, ...] = ()


@dataclass(frozen=True, slots=True)
class MicroBatchMemory:
    """Where a micro-batch is written: buffers of all its positions, and room for a number of pictures that turns out when
    these are read."""

    buffers: BatchBuffers | None = None
    pixels: Callable[[int, int], Pixels] | None = None

    def canvas(self, pictures: int, size: int) -> Pixels:
        """uint8 `[pictures, size, size, 3]`."""
        if self.pixels is not None:
            return self.pixels(pictures, size)
        return np.empty((pictures, size, size, 3), np.uint8)


_NEW_MEMORY = MicroBatchMemory()


class ArrayMaker:
    """Reads the spans of packs from their sources, assembles them, and decodes their pictures.

    `decoder` None: pictures are not even read.
    """

    def __init__(self, sources: Sequence[SpanSource], tokens: TokenCounts, decoder: Decoder | None) -> None:
        self.sources, self.tokens, self.decoder = tuple(sources), tokens, decoder

    def __call__(
        self, packs: Sequence[Sequence[Span]], shape: StepShape, memory: MicroBatchMemory = _NEW_MEMORY
    ) -> MicroBatchArrays:
        """A micro-batch of `packs`, of the sizes that `shape` says, in `memory`; without it, in arrays of its own.

        Raises:
            DataError: a text id that must not be there, naming the document; a damaged dataset.
        """
        native = native_operators()
        if native is not None:
            batch, places = self._assemble(native, packs, shape, memory.buffers)
        else:
            batch, places = self._assemble_reference(packs, shape, memory.buffers)
        pictures = batch.image_rows // shape.image_tokens
        if self.decoder is None:
            return MicroBatchArrays(batch, None, pictures)
        check_picture_count(len(places), batch.image_rows, shape.image_tokens)
        pixels = memory.canvas(pictures, shape.image_size)
        encoded = [self.sources[source].reader.image_bytes(sequence) for source, sequence in places]
        reasons = self.decoder.decode(encoded, pixels)
        broken = []
        for number in sorted(reasons):
            source, sequence = places[number]
            document = self.sources[source].reader.document_of_sequence(sequence)
            broken.append(BrokenPicture(source, document, sequence, number, reasons[number]))
        return MicroBatchArrays(batch, pixels, pictures, tuple(broken))

    def _assemble(
        self,
        native: NativeOperators,
        packs: Sequence[Sequence[Span]],
        shape: StepShape,
        buffers: BatchBuffers | None,
    ) -> tuple[PackedBatch, list[tuple[int, int]]]:
        """The batch, and the source and sequence of each of its pictures in reading order."""
        indexed = [source.indexed_at(shape.image_tokens) for source in self.sources]
        rows = [(span.source, span.document, span.start, span.length) for pack in packs for span in pack]
        spans: npt.NDArray[np.int64] = np.array(rows, np.int64).reshape(-1, 4)
        batch, pictures, fault = assemble_spans(
            native,
            [source for source in indexed if source is not None],
            spans,
            np.array([len(pack) for pack in packs], np.int64),
            sequence_length=shape.sequence_length,
            image_token_id=self.tokens.image_token_id,
            pad_id=self.tokens.pad_id,
            eod_id=self.tokens.eod_id,
            vocab_size=self.tokens.vocab_size,
            buffers=buffers,
        )
        if fault is not None:
            source, document, _, _ = rows[fault.span]
            raise self.sources[source].wrong_id(document, fault.token_id)
        return batch, [(int(source), int(sequence)) for source, sequence in pictures.tolist()]

    def _assemble_reference(
        self, packs: Sequence[Sequence[Span]], shape: StepShape, buffers: BatchBuffers | None
    ) -> tuple[PackedBatch, list[tuple[int, int]]]:
        """The same by numpy, document by document."""
        segments: list[list[Segment]] = []
        pictures: list[tuple[int, int]] = []
        for pack in packs:
            segments.append([])
            for span in pack:
                source = self.sources[span.source]
                segment, sequences = source.segment(span.document, span.start, span.length, shape.image_tokens)
                segments[-1].append(segment)
                pictures += [(span.source, sequence) for sequence in sequences]
        batch = assemble_packs(
            segments,
            sequence_length=shape.sequence_length,
            image_token_id=self.tokens.image_token_id,
            pad_id=self.tokens.pad_id,
            buffers=buffers,
        )
        return batch, pictures


def check_picture_count(found: int, rows: int, image_tokens: int) -> None:
    """Raises ValueError where pictures and placeholders do not go together."""
    if found * image_tokens != rows:
        raise ValueError(f"{found} pictures for the {rows} placeholders of {rows // image_tokens}")
