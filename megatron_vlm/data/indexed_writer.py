"""Writing Megatron's indexed datasets, so that a half-written one can never be opened."""

from __future__ import annotations

import json
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from megatron_vlm.data import atomic_file
from megatron_vlm.data.indexed_format import (
    CODE_OF_DTYPE,
    HEADER,
    IMAGE_MODE,
    MAGIC,
    TEXT_MODE,
    VERSION,
    dataset_paths,
    encode_image_record,
    supported_dtype,
)
from megatron_vlm.errors import DataError

LONGEST_SEQUENCE = np.iinfo(np.int32).max  # elements: the index stores lengths as int32


class IndexedWriter:
    """Writes NAME.bin and NAME.idx, and NAME.json where metadata is given.

    A context manager: leaving it normally finalizes, leaving it by an exception aborts. Everything is written
    to NAME.*.partial and renamed at the end, the .idx last: while there is no .idx there is no dataset. A
    dataset that was there before is replaced at that moment and not earlier.

    Args:
        prefix: path without suffix; missing folders are made.
        dtype: integer dtype of the elements of the .bin.
        multimodal: whether the .idx carries a mode for each sequence; needed for pictures.

    Raises:
        ValueError: the format has no code for `dtype`.
        DataError: NAME.json exists and is not a dataset's metadata, so writing it would destroy something
            else.
    """

    def __init__(self, prefix: Path | str, dtype: npt.DTypeLike = np.int32, multimodal: bool = False) -> None:
        self.prefix = Path(prefix)
        self.dtype = supported_dtype(dtype)
        self.multimodal = multimodal
        self._paths = dataset_paths(prefix)
        self._lengths = array("i")
        self._modes = array("b")
        self._document_index = array("q", [0])
        self._closed = False
        _refuse_foreign_metadata(self._paths.metadata)
        self._paths.data.parent.mkdir(parents=True, exist_ok=True)
        self._data = open(atomic_file.partial_path(self._paths.data), "wb")  # noqa: SIM115  closed at the end

    def add_text(self, ids: Sequence[int] | npt.NDArray[np.integer[Any]]) -> None:
        """Append a text sequence of token ids, int[L]; L may be 0.

        Raises DataError when an id does not fit the dtype (Megatron's builder would wrap it around).
        """
        values = np.asarray(ids, dtype=np.int64)
        if values.ndim != 1:
            raise ValueError(f"token ids are one-dimensional, not of shape {values.shape}")
        limits = np.iinfo(self.dtype)
        if values.size and (values.min() < limits.min or values.max() > limits.max):
            raise DataError(
                f"{self._paths.data}: sequence {len(self._lengths)} has token id {int(values.max())}, which "
                f"{self.dtype} cannot hold: write with a wider dtype, or check that the tokenizer is "
                "the intended one"
            )
        self._append(values.astype(self.dtype).tobytes(), TEXT_MODE)

    def add_image(self, encoded: bytes) -> None:
        """Append a picture as it is encoded (the bytes of a .jpg, .png or .webp file), unchanged.

        Raises ValueError when the dataset was not opened as multimodal.
        """
        if not self.multimodal:
            raise ValueError(f"{self.prefix} is text only: open it with multimodal=True to add pictures")
        self._append(encode_image_record(encoded, self.dtype), IMAGE_MODE)

    def end_document(self) -> None:
        """End the document that the sequences since the last call belong to; it may have none."""
        self._document_index.append(len(self._lengths))

    def finalize(self, metadata: Mapping[str, Any] | None = None) -> None:
        """Write the index and give every file its final name. A second call does nothing.

        `metadata`, when given, goes to NAME.json. Raises ValueError when sequences were added after the last
        `end_document`: a reader would not know which document they belong to.
        """
        if self._closed:
            return
        if self._document_index[-1] != len(self._lengths):
            loose = len(self._lengths) - self._document_index[-1]
            raise ValueError(f"{self.prefix}: {loose} sequences were added after the last end_document()")
        self._data.close()
        with open(atomic_file.partial_path(self._paths.index), "wb") as index:
            self._write_index(index)
        replaced = self._paths.index.exists()
        # From here until the last rename there is no dataset at this name, rather than half of two of them.
        self._paths.index.unlink(missing_ok=True)
        atomic_file.commit(self._paths.data)
        if metadata is not None:
            atomic_file.write_text(self._paths.metadata, json.dumps(metadata, indent=2, ensure_ascii=False) + "\n")
        elif replaced:
            self._paths.metadata.unlink(missing_ok=True)  # it described the dataset that was here before
        atomic_file.commit(self._paths.index)
        self._closed = True

    def abort(self) -> None:
        """Drop what was written. Files at the final names are left as they were. Never raises for a closed
        writer.
        """
        if self._closed:
            return
        self._closed = True
        self._data.close()
        for path in (self._paths.data, self._paths.index, self._paths.metadata):
            atomic_file.discard(path)

    def __enter__(self) -> IndexedWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is not None:
            self.abort()
            return
        try:
            self.finalize()
        except BaseException:
            self.abort()
            raise

    def _append(self, record: bytes, mode: int) -> None:
        if self._closed:
            raise ValueError(f"{self.prefix} is already finalized or aborted")
        length = len(record) // self.dtype.itemsize
        if length > LONGEST_SEQUENCE:
            raise DataError(
                f"{self._paths.data}: sequence {len(self._lengths)} has {length} elements, and the "
                f"format stops at {LONGEST_SEQUENCE}: split the document"
            )
        self._data.write(record)
        self._lengths.append(length)
        self._modes.append(mode)

    def _write_index(self, index: Any) -> None:
        lengths = np.array(self._lengths, dtype="<i4")
        pointers = np.zeros(len(lengths), dtype="<i8")
        np.cumsum(lengths[:-1], dtype=np.int64, out=pointers[1:])
        pointers *= self.dtype.itemsize
        documents = np.array(self._document_index, dtype="<i8")
        index.write(HEADER.pack(MAGIC, VERSION, CODE_OF_DTYPE[self.dtype], len(lengths), len(documents)))
        for column in (lengths, pointers, documents):
            index.write(column.tobytes())
        if self.multimodal:
            index.write(self._modes.tobytes())


def _refuse_foreign_metadata(path: Path) -> None:
    """Someone may keep data.json beside the data.bin they ask for: do not overwrite it."""
    if not path.exists():
        return
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        known = None
    if not (isinstance(known, dict) and {"tool_version", "kind"} <= known.keys()):
        raise DataError(f"{path} exists and is not a dataset's metadata; writing would replace it: choose another output")
