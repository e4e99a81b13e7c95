"""What planning knows of documents before they are read: positions, pictures, and where the last picture ends."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from megatron_vlm.config.picture_rows import PictureRows, as_rows
from megatron_vlm.data.indexed_format import IMAGE_MODE
from megatron_vlm.data.indexed_reader import IndexedReader
from megatron_vlm.ops.native import native_operators

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class DocumentLengths:
    """Of n documents, int64[n] each, with pictures expanded to placeholders.

    A document of k expanded ids has k - 1 positions: each predicts the id after it. One that ends with a picture gets an
    end-of-document after it, so that each of its rows is an input position. `picture_end` is the number of ids up to and
    with the last picture, 0 without any. `rows` is the number of placeholders, `squares` the sum over the pictures of the
    square of theirs, on which the cost of encoding them depends.
    """

    positions: Integers
    pictures: Integers
    picture_end: Integers
    rows: Integers
    squares: Integers


def document_lengths(
    reader: IndexedReader,
    documents: Integers,
    rows: int | PictureRows,
    facts: npt.NDArray[np.int32] | None = None,
) -> DocumentLengths:
    """Of the `documents` (by number), in time and memory of their sequences. Documents of fewer than two ids get 0 or -1.

    `facts` are needed where pictures keep their aspect (`open_sequence_facts`).
    """
    first = reader.document_indices[documents]
    counts = reader.document_indices[documents + 1] - first
    none = np.zeros(len(documents), np.int64)
    if not reader.multimodal and len(counts) and counts.min() == 1 == counts.max():
        return DocumentLengths(reader.sequence_lengths[first].astype(np.int64) - 1, none, none, none, none)
    filled = np.flatnonzero(counts > 0)
    ends = np.cumsum(counts[filled])
    starts = ends - counts[filled]
    total = int(ends[-1]) if len(ends) else 0
    positions = none - 1
    if not total:
        return DocumentLengths(positions, none, none, none, none)
    sequences = np.repeat(first[filled] - starts, counts[filled]) + np.arange(total)
    lengths = reader.sequence_lengths[sequences].astype(np.int64)
    if not reader.multimodal:
        positions[filled] = np.add.reduceat(lengths, starts) - 1
        return DocumentLengths(positions, none, none, none, none)
    picture = reader.modes[sequences] == IMAGE_MODE
    lengths[picture] = picture_rows(sequences[picture], rows, facts)
    before = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    pictures, picture_end, shown, squares = (none.copy() for _ in range(4))
    pictures[filled] = np.add.reduceat(picture.astype(np.int64), starts)
    shown[filled] = np.add.reduceat(np.where(picture, lengths, 0), starts)
    squares[filled] = np.add.reduceat(np.where(picture, lengths * lengths, 0), starts)
    upto = np.where(picture, before[1:] - np.repeat(before[starts], counts[filled]), 0)
    picture_end[filled] = np.maximum.reduceat(upto, starts)
    positions[filled] = before[ends] - before[starts] + picture[ends - 1] - 1
    return DocumentLengths(positions, pictures, picture_end, shown, squares)


def picture_rows(sequences: Integers, rows: int | PictureRows, facts: npt.NDArray[np.int32] | None) -> Integers:
    """Placeholders of the pictures in `sequences`, int64[n]."""
    picture = as_rows(rows)
    if not picture.native:
        return np.full(len(sequences), picture.most, np.int64)
    assert facts is not None
    return native_rows(np.asarray(facts[sequences]), picture)


def native_rows(sizes: npt.NDArray[np.int32], picture: PictureRows) -> Integers:
    """Placeholders of pictures of these heights and widths, int32[n, 2], that keep their aspect: int64[n]."""
    native = native_operators()
    if native is not None:
        return native.native_rows(np.ascontiguousarray(sizes, np.int32), picture.most, picture.patch, picture.fold)
    return np.array([picture.of(height, width) for height, width in sizes.tolist()], np.int64)
