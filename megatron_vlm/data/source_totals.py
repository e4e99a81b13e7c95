"""How much a dataset holds for training, counted from its index alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from megatron_vlm.config.picture_rows import PictureRows, as_rows
from megatron_vlm.data.document_lengths import native_rows
from megatron_vlm.data.indexed_format import IMAGE_MODE
from megatron_vlm.data.indexed_reader import IndexedReader
from megatron_vlm.data.indexed_views import check_sizes

_CHUNK = 1 << 18  # documents that a pass holds in memory


_IDS_OF_A_PICTURE = 2  # any number from two on counts the same documents


@dataclass(frozen=True, slots=True)
class SourceTotals:
    """One pass over a source, with pictures expanded: documents that have a position, their positions, their pictures, and
    the positions of these."""

    documents: int
    positions: int
    pictures: int
    visual: int


@dataclass(frozen=True, slots=True)
class DatasetCount:
    """What totals are made from at any number of tokens a picture.

    Attributes:
        documents: that can be trained on.
        words: positions of them but for those of pictures.
        pictures: of them.
        short: documents of fewer than two ids, which have nothing to predict.
    """

    documents: int
    words: int
    pictures: int
    short: int

    def totals(self, image_tokens: int) -> SourceTotals:
        """Where each picture takes `image_tokens` ids."""
        return self.with_rows(self.pictures * image_tokens)

    def with_rows(self, visual: int) -> SourceTotals:
        """Where the pictures take `visual` ids together."""
        return SourceTotals(self.documents, self.words + visual, self.pictures, visual)


def source_totals(
    count: DatasetCount, reader: IndexedReader, facts: npt.NDArray[np.int32] | None, rows: int | PictureRows
) -> SourceTotals:
    """Totals where pictures take `rows`; those that keep their aspect are counted in one pass over `facts`.

    Raises DataError as `check_sizes` does.
    """
    picture = as_rows(rows)
    check_sizes(reader, facts, rows)
    if not picture.native or facts is None or not count.pictures:
        return count.totals(picture.most)
    visual = 0
    for start in range(0, reader.sequence_count, _CHUNK):
        shown = reader.modes[start : start + _CHUNK] == IMAGE_MODE
        visual += int(native_rows(np.asarray(facts[start : start + _CHUNK])[shown], picture).sum())
    return count.with_rows(visual)


def count_dataset(reader: IndexedReader) -> DatasetCount:
    """One pass over the index, in little memory.

    A document of n expanded ids has n - 1 positions, one more if it ends with a picture (an end-of-document follows it);
    documents with fewer than 2 ids have none and are not counted, a picture being two ids or more.

    Raises:
        DataError: the index is damaged.
    """
    documents = positions = pictures = 0
    borders = reader.document_indices
    for start in range(0, reader.document_count, _CHUNK):
        after = borders[start : start + _CHUNK + 1]
        first, last = int(after[0]), int(after[-1])
        if not 0 <= first <= last <= reader.sequence_count or np.any(after[1:] < after[:-1]):
            reader.verify()  # says what is wrong
        at = after - first
        ids = reader.sequence_lengths[first:last]
        if reader.multimodal:
            image = reader.modes[first:last] == IMAGE_MODE
            ids = np.where(image, np.int32(_IDS_OF_A_PICTURE), ids)
        length = _by_document(ids, at)
        if reader.multimodal and len(image):
            length += image[np.maximum(at[1:] - 1, 0)] & (at[1:] > at[:-1])
        usable = length >= 2
        count = int(np.count_nonzero(usable))
        documents += count
        positions += int(length.sum(where=usable)) - count
        if reader.multimodal:
            pictures += int(np.count_nonzero(image))
            if count < len(usable):
                pictures -= int(_by_document(image, at).sum(where=~usable))
    return DatasetCount(documents, positions - _IDS_OF_A_PICTURE * pictures, pictures, reader.document_count - documents)


def _by_document(per_sequence: npt.NDArray[np.generic], at: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Sums over the sequences `at[d] .. at[d + 1]` of each document, int64[D]."""
    if len(per_sequence) == len(at) - 1 and (len(at) < 2 or int(at[0]) == 0 and bool(np.all(np.diff(at) == 1))):
        return per_sequence.astype(np.int64)  # a sequence a document, as text is
    # differences of a running sum: np.add.reduceat gives an empty document its neighbour's value
    running = np.zeros(len(per_sequence) + 1, np.int64)
    np.cumsum(per_sequence, dtype=np.int64, out=running[1:])
    return np.diff(running[at])
