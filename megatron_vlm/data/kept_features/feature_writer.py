"""Writing a file of features: by several processes at once, part by part, going on where a killed run was.

The place of every picture is known before the first is encoded. So all processes write into one NAME.bin.partial, and
what each has done is a line in its own NAME.journal.RANK.partial, written when the part is on the disk.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from megatron_vlm.data import atomic_file
from megatron_vlm.data.checksums import describe_checksums, file_digests
from megatron_vlm.data.indexed_format import dataset_paths, index_header
from megatron_vlm.data.indexed_reader import IndexedReader
from megatron_vlm.data.indexed_writer import refuse_foreign_metadata
from megatron_vlm.data.kept_features.feature_facts import ELEMENT, FeatureFacts, read_facts
from megatron_vlm.data.kept_features.feature_reader import Features
from megatron_vlm.data.kept_features.picture_blocks import PictureBlocks
from megatron_vlm.errors import DataError

#: pictures of a part: what is done again after a kill, at most, by each process
PART = 256


class FeatureWriter:
    """One process's hand on the file at `prefix`. `facts` are without broken pictures.

    The first process calls `begin` before any other makes a writer, and `finish` when all have closed theirs.

    Raises:
        DataError: NAME.json is something else's.
    """

    def __init__(self, prefix: Path, facts: FeatureFacts, blocks: PictureBlocks, process: int = 0) -> None:
        self.prefix, self.facts, self.blocks = prefix, facts, blocks
        self._paths, self._head = dataset_paths(prefix), json.dumps({"head": facts.head()})
        refuse_foreign_metadata(self._paths.metadata)
        self._own = prefix.with_name(f"{prefix.name}.journal.{process}.partial")
        self._data: int | None = None

    @property
    def parts(self) -> int:
        return -(-len(self.blocks.first) // PART)

    def blocks_of(self, part: int) -> range:
        """Numbers of the blocks in a part."""
        return range(part * PART, min((part + 1) * PART, len(self.blocks.first)))

    def is_done(self) -> bool:
        """Whether the very file is there, whole."""
        if not self._paths.index.exists():
            return False
        with contextlib.suppress(DataError):
            return read_facts(self.prefix).head() == self.facts.head()
        return False

    def begin(self) -> None:
        """Room for the whole .bin; what was begun of another encoder, dataset or size is removed.

        Raises:
            DataError: the disk is not large enough.
        """
        self._paths.data.parent.mkdir(parents=True, exist_ok=True)
        partial, size = atomic_file.partial_path(self._paths.data), int(self.blocks.bounds[-1])
        journals = list(self._journals())
        if not all(_head_of(path) == self._head for path in journals) or not partial.exists():
            for path in [*journals, partial]:
                path.unlink(missing_ok=True)
        there = partial.stat().st_blocks * 512 if partial.exists() else 0
        free = shutil.disk_usage(partial.parent).free
        if size - there > free:
            raise DataError(
                f"{self.prefix}: features of {len(self.blocks.first):,} pictures take {size / 1e9:.1f} GB, and "
                f"{free / 1e9:.1f} GB are free; give --output on a larger disk, or draw fewer with megatron-vlm sample"
            )
        with open(partial, "ab") as stream:
            stream.truncate(size)

    def done(self) -> dict[int, dict[str, str]]:
        """Parts that are on the disk -> their broken pictures, as `FeatureFacts.broken`."""
        found: dict[int, dict[str, str]] = {}
        for path in self._journals():
            if _head_of(path) != self._head:
                continue
            for line in path.read_text(encoding="utf-8").splitlines()[1:]:
                with contextlib.suppress(ValueError, KeyError, TypeError):  # the last one of a killed run may be torn
                    told = json.loads(line)
                    found[int(told["part"])] = dict(told["broken"])
        return found

    def write_block(self, block: int, features: Features) -> None:
        """A picture's features at their place. uint16, the bits of bf16, of any shape. Raises ValueError of other sizes."""
        first, end = self.blocks.bounds[block : block + 2].tolist()
        if features.nbytes != end - first:
            raise ValueError(f"features of {features.nbytes} bytes for block {block}, which has {end - first}")
        if self._data is None:
            self._data = os.open(atomic_file.partial_path(self._paths.data), os.O_WRONLY)
        data = np.ascontiguousarray(features, ELEMENT).data.cast("B")
        while data:
            written = os.pwrite(self._data, data, first)
            data, first = data[written:], first + written

    def end_part(self, part: int, broken: Mapping[str, str]) -> None:
        """All blocks of a part are written: from now on a killed run does not make them again."""
        if self._data is not None:
            os.fdatasync(self._data)
        begun = self._own.exists() and _head_of(self._own) == self._head
        with open(self._own, "ab" if begun else "wb") as stream:
            # behind a line that was torn a new one begins
            stream.write(b"\n" if begun else (self._head + "\n").encode())
            stream.write((json.dumps({"part": part, "broken": dict(broken)}) + "\n").encode())

    def close(self) -> None:
        if self._data is not None:
            os.close(self._data)
            self._data = None

    def finish(self, dataset: IndexedReader) -> dict[str, Any]:
        """Give the files their names, the .idx last. Returns what NAME.json says.

        Raises:
            DataError: a part is missing.
        """
        done = self.done()
        missing = [part for part in range(self.parts) if part not in done]
        if missing:
            raise DataError(f"{self.prefix}: {len(missing)} of {self.parts} parts are not encoded; run the command again")
        broken = {sequence: reason for part in sorted(done) for sequence, reason in done[part].items()}
        facts = FeatureFacts(**{**self.facts.head(), "broken": broken})
        self._write_index(dataset)
        partials = [atomic_file.partial_path(path) for path in (self._paths.data, self._paths.index)]
        digests = dict(zip(("bin", "idx"), map(file_digests, partials), strict=True))
        counts = {
            "pictures": self.blocks.pictures,
            "encoded": len(self.blocks.first),
            "of": str(dataset.prefix),
            "bytes": int(self.blocks.bounds[-1]),
        }
        known = {**facts.as_metadata(counts), "checksums": describe_checksums(digests)}
        atomic_file.write_aside(self._paths.metadata, json.dumps(known, indent=2, ensure_ascii=False) + "\n")
        # between the first and the last rename no file of features at this name, rather than half of two
        atomic_file.commit_together([self._paths.data, self._paths.metadata, self._paths.index])
        for path in list(self._journals()):
            path.unlink(missing_ok=True)
        return known

    def _write_index(self, dataset: IndexedReader) -> None:
        """The .idx aside: the dataset's documents over our sequences."""
        with open(atomic_file.partial_path(self._paths.index), "wb") as stream:
            stream.write(index_header(ELEMENT, dataset.sequence_count, dataset.document_count))
            for column in (self.blocks.lengths, self.blocks.pointers, dataset.document_indices):
                stream.write(np.ascontiguousarray(column).tobytes())

    def _journals(self) -> Iterator[Path]:
        yield from self.prefix.parent.glob(f"{glob.escape(self.prefix.name)}.journal.*.partial")


def _head_of(journal: Path) -> str:
    """Its first line."""
    try:
        with open(journal, encoding="utf-8") as stream:
            return stream.readline().rstrip("\n")
    except (OSError, ValueError):
        return ""
