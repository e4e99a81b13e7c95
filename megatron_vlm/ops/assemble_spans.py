"""Spans of indexed datasets into the flat arrays of a micro-batch, read where the datasets are mapped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from megatron_vlm.config.picture_rows import PictureRows, as_rows
from megatron_vlm.ops.assemble import BatchBuffers, PackedBatch
from megatron_vlm.ops.native import NativeOperators


class IndexedSource:
    """A mapped dataset as the native operator reads it; its memory is kept as long as this object is.

    Args:
        data: the .bin, a buffer.
        dtype: dtype of its token ids: an integer.
        lengths, pointers, documents, modes: int32[N], int64[N], int64[D + 1] and int8[N] of the .idx, at any alignment.
        rows: placeholders that a picture is expanded to.
        facts: int32[N, 2], of each text 1 or 0 in the first column: whether it is learnt; of each picture its height and
            width in pixels. None: all text is learnt; pictures that keep their aspect need it.
    """

    _CODES = {"uint8": 1, "int8": 2, "int16": 3, "int32": 4, "int64": 5, "uint16": 8}

    def __init__(
        self,
        native: NativeOperators,
        data: Any,
        dtype: np.dtype[Any],
        lengths: npt.NDArray[np.int32],
        pointers: npt.NDArray[np.int64],
        documents: npt.NDArray[np.int64],
        modes: npt.NDArray[np.int8],
        rows: int | PictureRows,
        facts: npt.NDArray[np.int32] | None = None,
    ) -> None:
        code = self._CODES.get(dtype.name, 0)
        picture = as_rows(rows)
        self.held = native.IndexedSource(
            data, code, lengths, pointers, documents, modes, picture.most, facts, picture.patch, picture.fold
        )
        self._native = native

    def document_lengths(self, documents: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], ...]:
        """Of `documents` by number, int64[n] each: positions, pictures, the ids up to and with the last picture, the
        placeholders of its pictures and the sum of their squares.

        Raises:
            ValueError: a document that is not there, or whose sequences lie outside the index.
        """
        return self._native.document_lengths(self.held, np.ascontiguousarray(documents, np.int64))


@dataclass(frozen=True, slots=True)
class IdFault:
    """The first span (from 0) with a text id outside the vocabulary, or with the placeholder's, and that id."""

    span: int
    token_id: int


def assemble_spans(
    native: NativeOperators,
    sources: Sequence[IndexedSource],
    spans: npt.NDArray[np.int64],
    spans_per_pack: npt.NDArray[np.int64],
    *,
    sequence_length: int,
    image_token_id: int,
    pad_id: int,
    eod_id: int,
    vocab_size: int,
    buffers: BatchBuffers | None = None,
) -> tuple[PackedBatch, npt.NDArray[np.int64], IdFault | None]:
    """The batch of `assemble_packs` for spans of documents, in one call without a copy of their ids in between.

    Args:
        spans: int64[n, 4]: source, document, first position, positions. A span's ids are those of its positions and the one
            after them, `eod_id` at the document's end.
        spans_per_pack: int64[packs], summing to n.

    Returns:
        The batch; int64[pictures, 2], the source and the sequence of each picture that begins in a span, in reading order;
        and the first text id that may not be there, with which the batch must not be used.

    Raises:
        ValueError: a span outside its document, spans that do not fit their pack, or buffers of another size.
    """
    buffers = buffers or BatchBuffers.allocate(len(spans_per_pack) * sequence_length)
    cu_seqlens, max_seqlen, image_rows, pictures, at_fault, token_id = native.assemble_spans(
        [source.held for source in sources],
        spans,
        spans_per_pack,
        sequence_length,
        image_token_id,
        pad_id,
        eod_id,
        vocab_size,
        native.Outputs(*buffers.arrays()),
    )
    batch = buffers.batch(cu_seqlens, max_seqlen, image_rows)
    return batch, pictures.reshape(-1, 2), None if at_fault < 0 else IdFault(at_fault, token_id)
