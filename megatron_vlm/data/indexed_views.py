"""A dataset as the native operator reads it, for each number of placeholders that its pictures are shown in."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from megatron_vlm.config.picture_rows import PictureRows, as_rows
from megatron_vlm.data.indexed_reader import IndexedReader
from megatron_vlm.errors import DataError
from megatron_vlm.ops.assemble_spans import IndexedSource
from megatron_vlm.ops.native import native_operators


class IndexedViews:
    """Made on first use and kept. `facts` are as of `open_sequence_facts`."""

    def __init__(self, reader: IndexedReader, facts: npt.NDArray[np.int32] | None) -> None:
        self._reader, self._facts = reader, facts
        self._made: dict[int | PictureRows, IndexedSource] = {}

    def at(self, rows: int | PictureRows) -> IndexedSource | None:
        """With so many placeholders a picture; None without native operators.

        Raises DataError as `check_sizes` does.
        """
        native = native_operators()
        if native is None:
            return None
        if rows not in self._made:
            reader = self._reader
            index = (reader.sequence_lengths, reader.sequence_pointers, reader.document_indices, reader.modes)
            check_sizes(reader, self._facts, rows)
            if self._facts is None:  # and no picture in it
                rows_here: int | PictureRows = as_rows(rows).most
            else:
                rows_here = rows
            self._made[rows] = IndexedSource(native, reader.data, reader.dtype, *index, rows_here, self._facts)
        return self._made[rows]


def check_sizes(reader: IndexedReader, facts: npt.NDArray[np.int32] | None, rows: int | PictureRows) -> None:
    """Raises DataError where pictures keep their aspect and the dataset does not say how large they are."""
    if facts is None and reader.multimodal and as_rows(rows).native:
        raise DataError(
            f"{reader.prefix} does not say how large its pictures are (it has no {reader.prefix.name}.sequences.npy), which "
            f"data.pictures.resize: native needs; preprocess the sources again, or take letterbox, which keeps aspects too"
        )
