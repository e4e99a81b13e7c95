"""Reading Megatron's indexed datasets through memory maps, and refusing the ones that are damaged."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import struct
from bisect import bisect_right
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

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

#: an index of up to as many entries is verified when it is opened, which takes some milliseconds
VERIFIED_ON_OPENING = 1 << 20
_CHUNK = 1 << 20  # entries that a pass over the index holds in memory


class IndexedReader:
    """A dataset of N sequences in D documents, memory mapped.

    Opening checks the header, the sizes and the two ends of the index, and reads nothing else: an index of a billion entries
    opens as fast as one of ten. Everything in it is checked by `verify`, which is called on opening where the index is
    small, and otherwise before the first pass over all of it (`document_images`). What a single access reads is always
    checked to lie inside the files. Safe to share over a fork and to pickle: a copy maps the same files again.

    Args:
        prefix: path without suffix.
        verify: check the ends of the index, and all of it where it is small. A pickled reader was verified where it was
            made, so its copies skip this.

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
        self._verified = False
        self._read_index()
        if verify:
            self._verify_ends()
            if self.sequence_count + self.document_count <= VERIFIED_ON_OPENING:
                self.verify()

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
        """The sequences of a document, in reading order.

        Raises IndexError outside 0 <= document < D, DataError where the index is damaged.
        """
        if not 0 <= document < self.document_count:
            raise IndexError(f"{self.prefix} has documents 0 to {self.document_count - 1}, not {document}")
        first, after = self._document_at[document], self._document_at[document + 1]
        if not 0 <= first <= after <= self._count:
            raise DataError(
                f"{self._paths.index} is damaged: document {document} has sequences {first} to {after} of {self._count}; "
                f"{REBUILD}"
            )
        return range(first, after)

    def document_of_sequence(self, sequence: int) -> int:
        """The document that a sequence belongs to, found by halving; of a sound index only."""
        return bisect_right(self._document_at, sequence) - 1

    def sequence_of_byte(self, byte: int) -> int:
        """The sequence whose bytes in the .bin have `byte` among them, found by halving; of a sound index only."""
        return bisect_right(self._pointer_at, byte) - 1

    def tokens(self, sequence: int, offset: int = 0, length: int | None = None) -> npt.NDArray[Any]:
        """Token ids of a text sequence from `offset` on, `dtype`[length]; a read-only view, nothing is
        copied.

        Raises IndexError outside the sequence, ValueError when the sequence is an image, DataError where the index is
        damaged.
        """
        # Written out in one piece: this is called for every text that is read.
        if not 0 <= sequence < self._count:
            raise self._no_such(sequence)
        if self._mode_at is not None and self._mode_at[sequence] != TEXT_MODE:
            raise self._other_mode(sequence, "an image; read it with image_bytes()")
        total = self._length_at[sequence]
        count = total - offset if length is None else length
        pointer, itemsize = self._pointer_at[sequence], self._itemsize
        if offset < 0 or count < 0 or offset + count > total:
            if total < 0:
                raise self._outside(sequence)
            raise IndexError(f"{self.prefix}: sequence {sequence} has {total} tokens, not {offset}:{offset + count}")
        if pointer < 0 or pointer + total * itemsize > self._data_bytes:
            raise self._outside(sequence)
        first, odd = divmod(pointer, itemsize)
        if odd:  # no writer known leaves such pointers, and any reader accepts them
            return np.frombuffer(memoryview(self._data)[pointer + offset * itemsize :][: count * itemsize], self.dtype)
        first += offset
        return self._elements[first : first + count]

    def image_bytes(self, sequence: int) -> bytes:
        """The encoded picture (a whole .jpg, .png or .webp file) of an image sequence.

        Raises IndexError outside the dataset, ValueError when the sequence is text, DataError when the record
        or its place in the index is damaged.
        """
        start, stop = self.image_place(sequence)
        return self._data[start:stop]

    def image_place(self, sequence: int) -> tuple[int, int]:
        """Where in the .bin the encoded picture of an image sequence begins and ends, in bytes; raises as `image_bytes`."""
        if not 0 <= sequence < self._count:
            raise self._no_such(sequence)
        if self._mode_at is None or self._mode_at[sequence] != IMAGE_MODE:
            raise self._other_mode(sequence, "text; read it with tokens()")
        pointer, length, itemsize = self._pointer_at[sequence], self._length_at[sequence], self._itemsize
        stop = pointer + length * itemsize
        if pointer < 0 or length < 0 or stop > self._data_bytes:
            raise self._outside(sequence)
        start = pointer + itemsize
        padding = int.from_bytes(self._data[pointer : min(start, stop)], "little")  # of 0 to 7, so its sign is none
        if length == 0 or padding >= itemsize or padding > stop - start:
            self._refuse_record(sequence, np.frombuffer(memoryview(self._data)[pointer:stop], self.dtype))
        return start, stop - padding

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
        return self.read_metadata(self._paths.metadata)

    @staticmethod
    def read_metadata(path: Path) -> dict[str, Any]:
        """`metadata` of a NAME.json, whatever is beside it."""
        if not path.exists():
            return {}
        try:
            known = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError, OSError) as error:
            raise DataError(f"{path} is not JSON ({error}); {REBUILD}, or remove it") from error
        if not isinstance(known, dict):
            raise DataError(f"{path} holds no JSON object, so it is not this dataset's metadata; move it elsewhere")
        return known

    def verify(self) -> None:
        """Check that every sequence lies inside the .bin and every document inside the index; once, in little memory.

        Raises DataError at the first damage; `megatron-vlm validate` lists all of it.
        """
        if self._verified:
            return
        index, size = self._paths.index, self._data_bytes
        self._verify_documents_ends()
        if any(np.any(part[1:] < part[:-1]) for part in _chunks(self.document_indices, overlap=1)):
            raise self._documents_out_of_order()
        promised = 0
        for lengths, pointers in zip(_chunks(self.sequence_lengths), _chunks(self.sequence_pointers), strict=True):
            if lengths.min() < 0 or pointers.min() < 0:
                raise DataError(f"{index} is damaged: it has a negative length or pointer; {REBUILD}")
            furthest = int(pointers.max())
            if furthest <= size:  # then no end can be beyond what int64 holds
                furthest = int((pointers + lengths * np.int64(self._itemsize)).max())
            promised = max(promised, furthest)
        if any(np.any(part.view(np.uint8) > IMAGE_MODE) for part in _chunks(self.modes)):
            raise DataError(f"{index} has a sequence that is neither text (0) nor image (1); {REBUILD}")
        if promised != size:
            damage = "is truncated" if size < promised else "is longer than its index says"
            raise DataError(
                f"{self._paths.data} {damage}: {index.name} accounts for {promised} bytes and it has "
                f"{size}; the two were not written together, or a copy was cut short: {REBUILD}"
            )
        self._verified = True

    def __getstate__(self) -> tuple[Path, bool]:
        return self.prefix.absolute(), self._verified  # another process may have another working folder

    def __setstate__(self, state: tuple[Path, bool]) -> None:
        prefix, verified = state
        self.__init__(prefix, verify=False)  # type: ignore[misc]
        self._verified = verified

    def _no_such(self, sequence: int) -> IndexError:
        return IndexError(f"{self.prefix} has sequences 0 to {self._count - 1}, not {sequence}")

    def _other_mode(self, sequence: int, what: str) -> Exception:
        mode = TEXT_MODE if self._mode_at is None else self._mode_at[sequence]
        if mode not in (TEXT_MODE, IMAGE_MODE):
            return DataError(
                f"{self._paths.index} is damaged: sequence {sequence} is neither text (0) nor image (1) but {mode}; "
                f"{REBUILD}"
            )
        return ValueError(f"{self.prefix}: sequence {sequence} is {what}")

    def _outside(self, sequence: int) -> DataError:
        return DataError(
            f"{self._paths.index} is damaged: sequence {sequence}, {self._length_at[sequence]} elements from byte "
            f"{self._pointer_at[sequence]} on, lies outside the {self._data_bytes} bytes of {self._paths.data.name}; "
            f"{REBUILD}"
        )

    def _refuse_record(self, sequence: int, record: npt.NDArray[Any]) -> None:
        try:
            decode_image_record(record)
        except ValueError as error:
            raise DataError(f"{self._paths.data}: sequence {sequence} is no image record: {error}; {REBUILD}") from error

    def _documents_out_of_order(self) -> DataError:
        return DataError(
            f"{self._paths.index} is damaged: its documents do not run from sequence 0 to {self._count} in order; {REBUILD}"
        )

    def _sum_by_document(self, per_sequence: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        self.verify()
        # Differences of a running sum, because np.add.reduceat gives an empty document its neighbour's value.
        running = np.zeros(self._count + 1, dtype=np.int64)
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
        self._count, self._itemsize, self._data_bytes = sequences, self.dtype.itemsize, len(self._data)
        offset = HEADER.size
        self.sequence_lengths: npt.NDArray[np.int32] = np.frombuffer(self._index, "<i4", sequences, offset)
        self._length_at = self._column("i", offset, sequences)
        offset += 4 * sequences
        self.sequence_pointers: npt.NDArray[np.int64] = np.frombuffer(self._index, "<i8", sequences, offset)
        self._pointer_at = self._column("q", offset, sequences)
        offset += 8 * sequences
        self.document_indices: npt.NDArray[np.int64] = np.frombuffer(self._index, "<i8", entries, offset)
        self._document_at = self._column("q", offset, entries)
        offset += 8 * entries
        self.modes: npt.NDArray[np.int8]
        self._mode_at: memoryview | None = None
        if self.multimodal:
            self.modes = np.frombuffer(self._index, "i1", sequences, offset)
            self._mode_at = self._column("b", offset, sequences)
        else:
            self.modes = np.zeros(sequences, dtype=np.int8)  # memory that is taken only where something reads it
        self._elements: npt.NDArray[Any] = np.frombuffer(self._data, self.dtype, self._data_bytes // self._itemsize)

    def _column(self, code: Literal["b", "i", "q"], offset: int, count: int) -> memoryview:
        """A column of the index whose single numbers are read several times as fast as through numpy."""
        size = count * struct.calcsize("=" + code)
        return memoryview(self._index)[offset : offset + size].cast(code) if size else memoryview(b"")

    def _verify_ends(self) -> None:
        """What can be seen without a pass over the index: that it ends where the data does."""
        self._verify_documents_ends()
        end = self._pointer_at[-1] + self._length_at[-1] * self._itemsize if self._count else 0
        if end != self._data_bytes:
            self.verify()  # says what is wrong; data in an order of its own is sound

    def _verify_documents_ends(self) -> None:
        if self._document_at[0] != 0 or self._document_at[-1] != self._count:
            raise self._documents_out_of_order()


def _map_file(path: Path) -> mmap.mmap | bytes:
    """The bytes of a file, read only; an empty file cannot be mapped and is b""."""
    with open(path, "rb") as stream:
        if os.fstat(stream.fileno()).st_size == 0:
            return b""
        return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)


def _chunks(column: npt.NDArray[Any], overlap: int = 0) -> Iterator[npt.NDArray[Any]]:
    """A column in parts, each beginning with the last `overlap` entries of the one before; nothing of an empty one."""
    for start in range(0, len(column) - overlap, _CHUNK):
        yield column[start : start + _CHUNK + overlap]
