"""Writing Megatron's indexed datasets, so that a half-written one can never be opened."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from megatron_vlm.data import atomic_file
from megatron_vlm.data.checksums import describe_checksums
from megatron_vlm.data.disk_column import DiskColumn
from megatron_vlm.data.hashed_file import HashedFile
from megatron_vlm.data.indexed_format import (
    IMAGE_MODE,
    TEXT_MODE,
    dataset_paths,
    encode_image_record,
    index_header,
    supported_dtype,
)
from megatron_vlm.data.sequence_facts import FactsWriter
from megatron_vlm.errors import DataError

LONGEST_SEQUENCE = np.iinfo(np.int32).max  # elements: the index stores lengths as int32


class IndexedWriter:
    """Writes NAME.bin and NAME.idx, and NAME.json and NAME.sequences.npy where they are asked for.

    A context manager: leaving it normally finalizes, leaving it by an exception aborts. Everything is written
    to NAME.*.partial and renamed at the end, the .idx last: while there is no .idx there is no dataset. A
    dataset that was there before is replaced at that moment and not earlier. Memory stays at some megabytes: the columns
    of the index wait on disk.

    Args:
        prefix: path without suffix; missing folders are made.
        dtype: integer dtype of the elements of the .bin.
        multimodal: whether the .idx carries a mode for each sequence; needed for pictures.
        facts: whether NAME.sequences.npy is written (see `megatron_vlm.data.sequence_facts`).

    Raises:
        ValueError: the format has no code for `dtype`.
        DataError: NAME.json exists and is not a dataset's metadata, so writing it would destroy something
            else.
    """

    def __init__(
        self, prefix: Path | str, dtype: npt.DTypeLike = np.int32, multimodal: bool = False, facts: bool = False
    ) -> None:
        self.prefix = Path(prefix)
        self.dtype = supported_dtype(dtype)
        self.multimodal = multimodal
        self._paths = dataset_paths(prefix)
        self._closed = False
        self._hashes: dict[str, list[str]] | None = None
        self._adopted: Path | None = None
        self.sequences = self.documents = self.bytes = 0
        refuse_foreign_metadata(self._paths.metadata)
        self._paths.data.parent.mkdir(parents=True, exist_ok=True)
        self._data = HashedFile(atomic_file.partial_path(self._paths.data), flush_early=True)
        column = self._paths.index.with_name
        name = self._paths.index.name
        self._lengths = DiskColumn(column(f"{name}.lengths.partial"), "<i4")
        self._modes = DiskColumn(column(f"{name}.modes.partial"), "i1")
        self._starts = DiskColumn(column(f"{name}.documents.partial"), "<i8")
        self._facts = FactsWriter(self._paths.sequences) if facts else None
        self._starts.append(0)
        self._last_start = 0

    def add_text(self, ids: Sequence[int] | npt.NDArray[np.integer[Any]], learnt: bool = True) -> None:
        """Append a text sequence of token ids, int[L]; L may be 0.

        Raises DataError when an id does not fit the dtype (Megatron's builder would wrap it around).
        """
        values = np.asarray(ids, dtype=np.int64)
        if values.ndim != 1:
            raise ValueError(f"token ids are one-dimensional, not of shape {values.shape}")
        limits = np.iinfo(self.dtype)
        if values.size and (values.min() < limits.min or values.max() > limits.max):
            raise DataError(
                f"{self._paths.data}: sequence {self.sequences} has token id {int(values.max())}, which "
                f"{self.dtype} cannot hold: write with a wider dtype, or check that the tokenizer is "
                "the intended one"
            )
        self._append(values.astype(self.dtype).tobytes(), TEXT_MODE, (int(learnt), 0))

    def add_image(self, encoded: bytes, size: tuple[int, int] | None = None) -> None:
        """Append a picture as it is encoded (the bytes of a .jpg, .png or .webp file), unchanged.

        `size` is its (height, width), which only a dataset with facts needs.

        Raises ValueError when the dataset was not opened as multimodal.
        """
        if not self.multimodal:
            raise ValueError(f"{self.prefix} is text only: open it with multimodal=True to add pictures")
        if self._facts is not None and size is None:
            raise ValueError(f"{self.prefix} keeps the sizes of pictures: give add_image the (height, width)")
        self._append(encode_image_record(encoded, self.dtype), IMAGE_MODE, size or (0, 0))

    def end_document(self) -> None:
        """End the document that the sequences since the last call belong to; it may have none."""
        self._check_open()
        self._starts.append(self.sequences)
        self._last_start = self.sequences
        self.documents += 1

    def add_documents(
        self,
        data: bytes | memoryview,
        lengths: npt.NDArray[np.int32],
        modes: npt.NDArray[np.int8],
        facts: npt.NDArray[np.int32] | None,
        sequences_per_document: npt.NDArray[np.integer[Any]],
    ) -> None:
        """Append whole documents that are encoded already.

        Args:
            data: their sequences one after another, as the .bin holds them.
            lengths: int32[n], elements of each sequence; modes: int8[n]; facts: int32[n, 2], needed where facts are kept.
            sequences_per_document: int[d], summing to n.

        Raises ValueError when these do not fit each other, or modes are given that the dataset cannot hold.
        """
        self._check_open()
        if int(lengths.sum(dtype=np.int64)) * self.dtype.itemsize != len(data):
            raise ValueError(f"{self.prefix}: {len(data)} bytes do not hold the {len(lengths)} sequences given")
        self._add_columns(lengths, modes, facts, sequences_per_document)
        self._write(data)

    def _add_columns(
        self,
        lengths: npt.NDArray[np.int32],
        modes: npt.NDArray[np.int8],
        facts: npt.NDArray[np.int32] | None,
        sequences_per_document: npt.NDArray[np.integer[Any]],
    ) -> None:
        count = len(lengths)
        if len(modes) != count:
            raise ValueError(f"{self.prefix}: {len(modes)} modes for {count} sequences")
        if int(sequences_per_document.sum()) != count or self._last_start != self.sequences:
            raise ValueError(f"{self.prefix}: the documents do not begin and end with the sequences")
        if not self.multimodal and modes.any():
            raise ValueError(f"{self.prefix} is text only: open it with multimodal=True to add pictures")
        if self._facts is not None:
            if facts is None:
                raise ValueError(f"{self.prefix} keeps facts of its sequences: give those of these documents")
            self._facts.extend(facts)
        self._lengths.extend(lengths)
        self._modes.extend(modes)
        self._starts.extend(self.sequences + np.cumsum(sequences_per_document, dtype=np.int64))
        self.sequences += count
        self._last_start = self.sequences
        self.documents += len(sequences_per_document)

    def adopt(
        self,
        path: Path,
        digests: Sequence[str],
        lengths: npt.NDArray[np.int32],
        modes: npt.NDArray[np.int8],
        facts: npt.NDArray[np.int32] | None,
        sequences_per_document: npt.NDArray[np.integer[Any]],
    ) -> None:
        """Take a file as the whole .bin instead of writing one, and its documents as `add_documents` does.

        The file is moved: nothing is at `path` afterwards. `digests` are of its blocks, as by `BlockHasher`.

        Raises ValueError where something was written already, or the file does not hold these documents.
        """
        self._check_open()
        if self.sequences or self.documents:
            raise ValueError(f"{self.prefix} has documents already, and a file can only be all of them")
        size = path.stat().st_size
        if int(lengths.sum(dtype=np.int64)) * self.dtype.itemsize != size:
            raise ValueError(f"{path} has {size} bytes, which are not those of {len(lengths)} sequences")
        self._data.adopt(path, digests)
        self._adopted = path
        self._add_columns(lengths, modes, facts, sequences_per_document)
        self.bytes = size

    def rest(self) -> None:
        """Nothing will be added, but `finalize` comes later: keep no file open and no buffer until then."""
        self._data.close()
        for column in (self._lengths, self._modes, self._starts):
            column.close()
        if self._facts is not None:
            self._facts.close()

    def prepare(self) -> None:
        """Write the index aside, so that `finalize` has next to nothing left to write. A second call does nothing.

        Raises ValueError as `finalize` does.
        """
        if self._closed or self._hashes is not None:
            return
        if self._last_start != self.sequences:
            loose = self.sequences - self._last_start
            raise ValueError(f"{self.prefix}: {loose} sequences were added after the last end_document()")
        self._data.close()
        hashes = {"bin": self._data.digests(), "idx": self._write_index()}
        if self._facts is not None:
            hashes["sequences"] = self._facts.finish()
        self._discard_columns()
        self._hashes = hashes

    def finalize(self, metadata: Mapping[str, Any] | None = None) -> None:
        """Write the index and give every file its final name. A second call does nothing.

        `metadata`, when given, goes to NAME.json, with the checksums of the files. Raises ValueError when sequences were
        added after the last `end_document`: a reader would not know which document they belong to.
        """
        if self._closed:
            return
        self.prepare()
        assert self._hashes is not None
        paths = self._paths
        finals: list[Path] = [paths.data]
        stale: list[Path] = []
        (stale if self._facts is None else finals).append(paths.sequences)
        if metadata is not None:
            known = {**metadata, "checksums": describe_checksums(self._hashes)}
            atomic_file.write_aside(paths.metadata, json.dumps(known, indent=2, ensure_ascii=False) + "\n")
            finals.append(paths.metadata)
        elif paths.index.exists():
            stale.append(paths.metadata)  # it described the dataset that was here before
        # Between the first and the last rename there is no dataset at this name, rather than half of two of them.
        atomic_file.commit_together([*finals, paths.index], stale)
        self._closed = True

    def abort(self) -> None:
        """Drop what was written; a file that was adopted goes back to where it was. Files at the final names are left as
        they were. Never raises for a closed writer.
        """
        if self._closed:
            return
        self._closed = True
        self._data.discard()
        if self._adopted is not None and self._data.path.exists():
            os.replace(self._data.path, self._adopted)
        self._discard_columns()
        if self._facts is not None:
            self._facts.discard()
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

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError(f"{self.prefix} is already finalized or aborted")

    def _append(self, record: bytes, mode: int, facts: tuple[int, int]) -> None:
        self._check_open()
        length = len(record) // self.dtype.itemsize
        if length > LONGEST_SEQUENCE:
            raise DataError(
                f"{self._paths.data}: sequence {self.sequences} has {length} elements, and the "
                f"format stops at {LONGEST_SEQUENCE}: split the document"
            )
        self._write(record)
        self._lengths.append(length)
        self._modes.append(mode)
        if self._facts is not None:
            self._facts.append(*facts)
        self.sequences += 1

    def _write(self, data: bytes | memoryview) -> None:
        self._data.write(data)
        self.bytes += len(data)

    def _write_index(self) -> list[str]:
        """Write the .idx aside; the hashes of its blocks."""
        with HashedFile(atomic_file.partial_path(self._paths.index)) as index:
            write = index.write
            write(index_header(self.dtype, self.sequences, self.documents))
            for block in self._lengths.blocks():
                write(block.tobytes())
            pointer = 0
            for block in self._lengths.blocks():
                ends = np.cumsum(block, dtype=np.int64) * self.dtype.itemsize + pointer
                write(np.concatenate([np.array([pointer], "<i8"), ends[:-1]]).astype("<i8").tobytes())
                pointer = int(ends[-1])
            for block in self._starts.blocks():
                write(block.tobytes())
            if self.multimodal:
                for block in self._modes.blocks():
                    write(block.tobytes())
        return index.digests()

    def _discard_columns(self) -> None:
        for column in (self._lengths, self._modes, self._starts):
            column.discard()


def refuse_foreign_metadata(path: Path) -> None:
    """Someone may keep data.json beside the data.bin they ask for: do not overwrite it."""
    if not path.exists():
        return
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        known = None
    if not (isinstance(known, dict) and {"tool_version", "kind"} <= known.keys()):
        raise DataError(f"{path} exists and is not a dataset's metadata; writing would replace it: choose another output")
