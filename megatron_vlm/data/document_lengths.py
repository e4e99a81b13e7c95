"""What planning knows of documents before they are read: positions, pictures, and where the last picture ends."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from megatron_vlm.data.indexed_format import IMAGE_MODE
from megatron_vlm.data.indexed_reader import IndexedReader

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class DocumentLengths:
    """Of n documents, int64[n] each, with pictures expanded to placeholders.

    A document of k expanded ids has k - 1 positions: each predicts the id after it. One that ends with a picture gets an
    end-of-document after it, so that each of its rows is an input position. `picture_end` is the number of ids up to and
    with the last picture, 0 without any.
    """

    positions: Integers
    pictures: Integers
    picture_end: Integers


def document_lengths(reader: IndexedReader, documents: Integers, image_tokens: int) -> DocumentLengths:
    """Of the `documents` (by number), in time and memory of their sequences. Documents of fewer than two ids get 0 or -1."""
    first = reader.document_indices[documents]
    counts = reader.document_indices[documents + 1] - first
    none = np.zeros(len(documents), np.int64)
    if not reader.multimodal and len(counts) and counts.min() == 1 == counts.max():
        return DocumentLengths(reader.sequence_lengths[first].astype(np.int64) - 1, none, none)
    filled = np.flatnonzero(counts > 0)
    ends = np.cumsum(counts[filled])
    starts = ends - counts[filled]
    total = int(ends[-1]) if len(ends) else 0
    positions = none - 1
    if not total:
        return DocumentLengths(positions, none, none)
    sequences = np.repeat(first[filled] - starts, counts[filled]) + np.arange(total)
    lengths = reader.sequence_lengths[sequences].astype(np.int64)
    if not reader.multimodal:
        positions[filled] = np.add.reduceat(lengths, starts) - 1
        return DocumentLengths(positions, none, none)
    picture = reader.modes[sequences] == IMAGE_MODE
    lengths[picture] = image_tokens
    before = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    pictures, picture_end = none.copy(), none.copy()
    pictures[filled] = np.add.reduceat(picture.astype(np.int64), starts)
    upto = np.where(picture, before[1:] - np.repeat(before[starts], counts[filled]), 0)
    picture_end[filled] = np.maximum.reduceat(upto, starts)
    positions[filled] = before[ends] - before[starts] + picture[ends - 1] - 1
    return DocumentLengths(positions, pictures, picture_end)
