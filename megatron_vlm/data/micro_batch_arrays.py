"""Spans of packs into the arrays of one micro-batch. Nothing here imports torch, so that a worker starts at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from megatron_vlm.config.data import TokenCounts
from megatron_vlm.config.picture_rows import PictureRows, as_rows
from megatron_vlm.config.steps import StepShape
from megatron_vlm.data.broken_pictures import BrokenPicture
from megatron_vlm.data.decoding.canvas import Canvases
from megatron_vlm.data.decoding.decoder import Decoder
from megatron_vlm.data.documents import Span
from megatron_vlm.data.indexed_reader import IndexedReader
from megatron_vlm.data.kept_features.feature_reader import FeatureReader, Features
from megatron_vlm.errors import DataError
from megatron_vlm.ops.assemble import BatchBuffers, PackedBatch, Segment, assemble_packs
from megatron_vlm.ops.assemble_spans import IndexedSource, assemble_spans
from megatron_vlm.ops.native import NativeOperators, native_operators

Pixels = npt.NDArray[np.uint8]
#: (height, width) of pictures, in pixels
Sizes = tuple[tuple[int, int], ...]


class SpanSource(Protocol):
    """A dataset as its spans are read: `DocumentSource`, or a worker's own (`data/loader/span_source.py`)."""

    @property
    def reader(self) -> IndexedReader: ...

    def indexed_at(self, image_tokens: int | PictureRows) -> IndexedSource | None: ...

    def segment(
        self, document: int, start: int, positions: int, image_tokens: int | PictureRows | None = None
    ) -> tuple[Segment, list[int]]: ...

    def picture_size(self, sequence: int) -> tuple[int, int]: ...

    def wrong_id(self, document: int, token_id: int) -> DataError: ...


@dataclass(frozen=True, slots=True, eq=False)
class MicroBatchArrays:
    """What a micro-batch is made of, before it is tensors.

    Attributes:
        batch: the flat arrays of its positions.
        pixels: uint8 `[pictures, size, size, 3]` in reading order, or, where they keep their aspect, all of them one after
            another, `[bytes]`; None where none are read.
        broken: pictures that did not decode.
        sizes: (height, width) in pixels of each picture as it is shown; None where all are squares of one size.
        features: in place of pixels where the encoder's features are read: uint16 `[image rows, numbers of a row]`, the bits
            of bf16.
    """

    batch: PackedBatch
    pixels: Pixels | None
    pictures: int
    broken: tuple[BrokenPicture, ...] = ()
    sizes: Sizes | None = None
    features: Features | None = None


@dataclass(frozen=True, slots=True)
class MicroBatchMemory:
    """Where a micro-batch is written: buffers of all its positions, and room for a number of pictures that turns out when
    these are read."""

    buffers: BatchBuffers | None = None
    pixels: Callable[[int], Pixels] | None = None

    def canvas(self, pictures: int, size: int) -> Pixels:
        """uint8 `[pictures, size, size, 3]`."""
        return self._bytes(pictures * 3 * size**2).reshape(pictures, size, size, 3)

    def canvases(self, sizes: Sizes) -> tuple[Pixels, list[Pixels]]:
        """Room for pictures of these sizes one after another, and that of each, uint8 `[height, width, 3]`."""
        flat = self._bytes(3 * sum(height * width for height, width in sizes))
        return flat, canvases_in(flat, sizes)

    def features(self, rows: int, numbers: int) -> Features:
        """uint16 `[rows, numbers]`."""
        return self._bytes(2 * rows * numbers).view(np.uint16).reshape(rows, numbers)

    def _bytes(self, count: int) -> Pixels:
        return np.empty(count, np.uint8) if self.pixels is None else self.pixels(count)


_NEW_MEMORY = MicroBatchMemory()


class ArrayMaker:
    """Reads the spans of packs from their sources, assembles them, and decodes their pictures, or reads their features.

    `decoder` None: pictures are not even read, nor are their features. `features` are those of each source, None where it
    has none.
    """

    def __init__(
        self,
        sources: Sequence[SpanSource],
        tokens: TokenCounts,
        decoder: Decoder | None,
        features: Sequence[FeatureReader | None] = (),
    ) -> None:
        self.sources, self.tokens, self.decoder, self.features = tuple(sources), tokens, decoder, tuple(features)

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
        pictures, sizes = len(places), self._sizes(places, shape.picture)
        check_picture_rows(pictures, sizes, batch.image_rows, shape.picture)
        if self.decoder is None:
            return MicroBatchArrays(batch, None, pictures, sizes=sizes)
        if shape.features:
            features = memory.features(batch.image_rows, shape.features)
            reasons = self._read_features(places, row_counts(pictures, sizes, shape.picture), features)
            return MicroBatchArrays(batch, None, pictures, self._broken(places, reasons), sizes, features)
        pixels: Pixels
        canvases: Canvases
        if sizes is None:
            pixels = canvases = memory.canvas(pictures, shape.image_size)
        else:
            pixels, canvases = memory.canvases(sizes)
        encoded = [self.sources[source].reader.image_bytes(sequence) for source, sequence in places]
        reasons = self.decoder.decode(encoded, canvases)
        return MicroBatchArrays(batch, pixels, pictures, self._broken(places, reasons), sizes)

    def _broken(self, places: Sequence[tuple[int, int]], reasons: Mapping[int, str]) -> tuple[BrokenPicture, ...]:
        broken = []
        for number in sorted(reasons):
            source, sequence = places[number]
            document = self.sources[source].reader.document_of_sequence(sequence)
            broken.append(BrokenPicture(source, document, sequence, number, reasons[number]))
        return tuple(broken)

    def _read_features(self, places: Sequence[tuple[int, int]], rows: Sequence[int], features: Features) -> dict[int, str]:
        """Fill `features` with those of pictures of so many rows each; number of a picture -> why it did not decode."""
        reasons, at = {}, 0
        for number, ((source, sequence), count) in enumerate(zip(places, rows, strict=True)):
            reader = self.features[source] if source < len(self.features) else None
            if reader is None:
                raise DataError(
                    f"{self.sources[source].reader.prefix} has pictures and no features, in a stage that reads "
                    f"data.features; make them with megatron-vlm encode"
                )
            reason = reader.read(sequence, features[at : at + count])
            if reason is not None:
                reasons[number] = reason
            at += count
        return reasons

    def _sizes(self, places: Sequence[tuple[int, int]], picture: PictureRows) -> Sizes | None:
        """How large each picture is shown; None where all are alike."""
        if not picture.native:
            return None
        grids = (picture.grid(*self.sources[source].picture_size(sequence)) for source, sequence in places)
        return tuple((rows * picture.patch, columns * picture.patch) for rows, columns in grids)

    def _assemble(
        self,
        native: NativeOperators,
        packs: Sequence[Sequence[Span]],
        shape: StepShape,
        buffers: BatchBuffers | None,
    ) -> tuple[PackedBatch, list[tuple[int, int]]]:
        """The batch, and the source and sequence of each of its pictures in reading order."""
        indexed = [source.indexed_at(shape.picture) for source in self.sources]
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
                segment, sequences = source.segment(span.document, span.start, span.length, shape.picture)
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


def canvases_in(flat: Pixels, sizes: Sizes) -> list[Pixels]:
    """Pictures that lie one after another in `flat`, uint8 `[bytes]`: views `[height, width, 3]`."""
    found, at = [], 0
    for height, width in sizes:
        end = at + 3 * height * width
        found.append(flat[at:end].reshape(height, width, 3))
        at = end
    return found


def row_counts(pictures: int, sizes: Sizes | None, rows: int | PictureRows) -> list[int]:
    """Placeholders of each picture of a micro-batch."""
    picture = as_rows(rows)
    if sizes is None:
        return [picture.most] * pictures
    return [picture.of_pixels(height, width) for height, width in sizes]


def check_picture_rows(pictures: int, sizes: Sizes | None, rows: int, picture: PictureRows) -> None:
    """Raises ValueError where pictures and placeholders do not go together."""
    need = sum(row_counts(pictures, sizes, picture))
    if need != rows:
        raise ValueError(f"{pictures} pictures need {need} placeholders, and there are {rows}")
