"""A dataset as the native operator reads it, for each number of placeholders that its pictures are shown in."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from megatron_vlm.data.indexed_reader import IndexedReader
from megatron_vlm.ops.assemble_spans import IndexedSource
from megatron_vlm.ops.native import native_operators


class IndexedViews:
    """Made on first use and kept. `facts` are as of `open_sequence_facts`."""

    def __init__(self, reader: IndexedReader, facts: npt.NDArray[np.int32] | None) -> None:
        self._reader, self._facts = reader, facts
        self._made: dict[int, IndexedSource] = {}

    def at(self, image_tokens: int) -> IndexedSource | None:
        """With so many placeholders a picture; None without native operators."""
        native = native_operators()
        if native is None:
            return None
        if image_tokens not in self._made:
            reader = self._reader
            index = (reader.sequence_lengths, reader.sequence_pointers, reader.document_indices, reader.modes)
            self._made[image_tokens] = IndexedSource(native, reader.data, reader.dtype, *index, image_tokens, self._facts)
        return self._made[image_tokens]
