"""Reading Megatron's indexed datasets through memory maps, and refusing the ones that are damaged."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from megatron_vlm.data.indexed_format import (
    DTYPE_OF_CODE,
    HEADER,
    IMAGE_MODE,
    MAGIC,
    TEXT_MODE,
    VERSION,
    dataset_paths,
    decode_image_record,
    index_size,
)
from megatron_vlm.errors import DataError

REBUILD = "copy it again, or preprocess the sources again"


class IndexedReader:
    """A dataset of N sequences in D documents, memory mapped.

    Opening costs one pass over the .idx and none over the .bin. Safe to share over a fork and to pickle: a
    copy maps the same files again.

    Args:
        prefix: path without suffix.
        verify: check that every sequence lies inside the .bin and every document inside the index. Sizes and
            header are checked in any case. A pickled reader was verified where it was made, so its copies
            skip this.

    Attributes:
        dtype: dtype of the elements in the .bin.
        multimodal: whether the .idx carries modes. A dataset without sequences cannot say, and is not
            multimodal.
        sequence_lengths: int32[N], in elements.
        sequence_pointers: int64[N], in bytes into the .bin.
        document_indices: int64[D + 1], first sequence of each document, then N.
        modes: int8[N], 0 text and 1 image; zeros where the dataset is not multimodal.

    The arrays are read-only views of the file; the format does not align them, which numpy handles and C code
    may not.

    Raises:
        DataError: a file is missing, truncated, not of this format, or the two do not belong together.
    """

    def __init__(self, prefix: Path | str, verify: bool = True) -> None:
        self.prefix = Path(prefix)
        self._paths = dataset_paths(prefix)
        for path in (self._paths.index, self._paths.data):
            if not path.is_file():
                raise DataError(f"{path} does not exist; a dataset is named without suffix, like {self.prefix}")
        self._index = _map_file(self._paths.index)
        self._data = _map_file(self._paths.data)
        self._read_index()
        if verify:
            self._verify()

    @property
    def data(self) -> mmap.mmap | bytes:
        """The .bin as it is mapped, for operators that read it in place."""
        return self._data

    @property
    def sequence_count(self) -> int:
        """N, the number of sequences."""
        return len(self.sequence_lengths)

    @property
    def document_count(self) -> int:
        """D, the number of documents."""
        return len(self.document_indices) - 1

    def document_sequences(self, document: int) -> range:
        """The sequences of a document, in reading order. Raises IndexError outside 0 <= document < D."""
        if not 0 <= document < self.document_count:
            raise IndexError(f"{self.prefix} has documents 0 to {self.document_count - 1}, not {document}")
        return range(int(self.document_indices[document]), int(self.document_indices[document + 1]))

    def tokens(self, sequence: int, offset: int = 0, length: int | None = None) -> npt.NDArray[Any]:
        """Token ids of a text sequence from `offset` on, `dtype`[length]; a read-only view, nothing is
        copied.

        Raises IndexError outside the sequence, ValueError when the sequence is an image.
        """
        if self._mode(sequence) == IMAGE_MODE:
            raise ValueError(f"{self.prefix}: sequence {sequence} is an image; read it with image_bytes()")
        total = int(self.sequence_lengths[sequence])
        count = total - offset if length is None else length
        if offset < 0 or count < 0 or offset + count > total:
            raise IndexError(f"{self.prefix}: sequence {sequence} has {total} tokens, not {offset}:{offset + count}")
        return self._elements(int(self.sequence_pointers[sequence]) + offset * self.dtype.itemsize, count)

    def image_bytes(self, sequence: int) -> bytes:
        """The encoded picture (a whole .jpg, .png or .webp file) of an image sequence.

        Raises IndexError outside the dataset, ValueError when the sequence is text, DataError when the record
        is damaged.
        """
        if self._mode(sequence) != IMAGE_MODE:
            raise ValueError(f"{self.prefix}: sequence {sequence} is text; read it with tokens()")
        record = self._elements(int(self.sequence_pointers[sequence]), int(self.sequence_lengths[sequence]))
        try:
            return decode_image_record(record)
        except ValueError as error:
            raise DataError(f"{self._paths.data}: sequence {sequence} is no image record: {error}; {REBUILD}") from error

    def document_text_tokens(self) -> npt.NDArray[np.int64]:
        """Number of text tokens in each document, int64[D]."""
        return self._sum_by_document(np.where(self.modes == TEXT_MODE, self.sequence_lengths, 0))

    def document_images(self) -> npt.NDArray[np.int64]:
        """Number of images in each document, int64[D]."""
        return self._sum_by_document(self.modes == IMAGE_MODE)

    @cached_property
    def fingerprint(self) -> str:
        """sha256, in hex, of the .idx and the size of the .bin: cheap, and changes whenever any length
        does.
        """
        digest = hashlib.sha256(self._index)
        digest.update(len(self._data).to_bytes(8, "little"))
        return digest.hexdigest()

    @cached_property
    def metadata(self) -> dict[str, Any]:
        """What NAME.json says, or {} where there is none (a dataset that Megatron wrote).

        Raises DataError when NAME.json is there and is no JSON object.
        """
        path = self._paths.metadata
        if not path.exists():
            return {}
        try:
            known = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise DataError(f"{path} is not JSON ({error}); {REBUILD}, or remove it") from error
        if not isinstance(known, dict):
            raise DataError(f"{path} holds no JSON object, so it is not this dataset's metadata; move it elsewhere")
        return known

    def __getstate__(self) -> Path:
        return self.prefix.absolute()  # another process may have another working folder

    def __setstate__(self, prefix: Path) -> None:
        self.__init__(prefix, verify=False)  # type: ignore[misc]

    def _mode(self, sequence: int) -> int:
        if not 0 <= sequence < self.sequence_count:
            raise IndexError(f"{self.prefix} has sequences 0 to {self.sequence_count - 1}, not {sequence}")
        return int(self.modes[sequence])

    def _elements(self, start: int, count: int) -> npt.NDArray[Any]:
        if count == 0:
            return np.empty(0, dtype=self.dtype)
        return np.frombuffer(self._data, dtype=self.dtype, count=count, offset=start)

    def _sum_by_document(self, per_sequence: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        # Differences of a running sum, because np.add.reduceat gives an empty document its neighbour's value.
        running = np.zeros(self.sequence_count + 1, dtype=np.int64)
        np.cumsum(per_sequence, dtype=np.int64, out=running[1:])
        return np.diff(running[self.document_indices])

    def _read_index(self) -> None:
        path, size = self._paths.index, len(self._index)
        if size < HEADER.size:
            raise DataError(f"{path} is truncated: {size} bytes, and the header alone is {HEADER.size}; {REBUILD}")
        magic, version, code, sequences, entries = HEADER.unpack_from(self._index)
        if magic != MAGIC:
            raise DataError(f"{path} is not an indexed dataset: it begins with {magic!r} instead of {MAGIC!r}")
        if version != VERSION:
            raise DataError(f"{path} has format version {version}; only {VERSION} can be read: write it again")
        if code not in DTYPE_OF_CODE:
            raise DataError(f"{path} has dtype code {code}; token ids have one of {sorted(DTYPE_OF_CODE)}")
        plain, with_modes = (index_size(sequences, entries, multimodal) for multimodal in (False, True))
        if size not in (plain, with_modes) or entries < 1:
            damage = "is truncated" if size < plain else "does not have the size that its header asks for"
            raise DataError(
                f"{path} {damage}: {sequences} sequences and {entries - 1} documents take {plain} bytes, or "
                f"{with_modes} with modes, and it has {size}; {REBUILD}"
            )
        self.dtype = DTYPE_OF_CODE[code]
        self.multimodal = sequences > 0 and size == with_modes
        offset = HEADER.size
        self.sequence_lengths: npt.NDArray[np.int32] = np.frombuffer(self._index, "<i4", sequences, offset)
        offset += 4 * sequences
        self.sequence_pointers: npt.NDArray[np.int64] = np.frombuffer(self._index, "<i8", sequences, offset)
        offset += 8 * sequences
        self.document_indices: npt.NDArray[np.int64] = np.frombuffer(self._index, "<i8", entries, offset)
        offset += 8 * entries
        self.modes: npt.NDArray[np.int8]
        if self.multimodal:
            self.modes = np.frombuffer(self._index, "i1", sequences, offset)
        else:
            self.modes = np.zeros(sequences, dtype=np.int8)

    def _verify(self) -> None:
        index, data = self._paths.index, self._paths.data
        documents = self.document_indices
        if documents[0] != 0 or documents[-1] != self.sequence_count or np.any(np.diff(documents) < 0):
            raise DataError(
                f"{index} is damaged: its documents do not run from sequence 0 to {self.sequence_count} in order; {REBUILD}"
            )
        if np.any(self.sequence_lengths < 0) or np.any(self.sequence_pointers < 0):
            raise DataError(f"{index} is damaged: it has a negative length or pointer; {REBUILD}")
        if not np.isin(self.modes, (TEXT_MODE, IMAGE_MODE)).all():
            raise DataError(f"{index} has a sequence that is neither text (0) nor image (1); {REBUILD}")
        ends = self.sequence_pointers + self.sequence_lengths * np.int64(self.dtype.itemsize)
        promised = int(ends.max(initial=0))
        if promised != len(self._data):
            damage = "is truncated" if len(self._data) < promised else "is longer than its index says"
            raise DataError(
                f"{data} {damage}: {index.name} accounts for {promised} bytes and it has "
                f"{len(self._data)}; the two were not written together, or a copy was cut short: {REBUILD}"
            )


def _map_file(path: Path) -> mmap.mmap | bytes:
    """The bytes of a file, read only; an empty file cannot be mapped and is b""."""
    with open(path, "rb") as stream:
        if os.fstat(stream.fileno()).st_size == 0:
            return b""
        return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
