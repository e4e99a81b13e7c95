"""The finished work of one unit, on disk: what an interrupted run need not do again.

Five files in the folder of the job: UNIT.bin, the sequences; UNIT.columns, the arrays of `as_columns` by numpy.save;
UNIT.rejections, what was set aside, a JSON object a line; UNIT.absent, where files of pictures would lie that were not
there, a JSON string a line; and UNIT.json, the counts. The .json is renamed last: where it is, the part is whole, whatever
killed the process. A power cut is another matter, as nothing is flushed to the disk before the dataset is: a later run
compares the files with the digests in the .json before it uses them.
"""

from __future__ import annotations

import io
import json
import mmap
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from megatron_vlm.data.building.prepared import KEY_BYTES, PreparedBatch, as_columns
from megatron_vlm.data.checksums import file_digests
from megatron_vlm.data.disk_column import DiskColumn
from megatron_vlm.data.hashed_file import HashedFile
from megatron_vlm.data.quarantine import Rejection
from megatron_vlm.data.sources.picture_store import may_be_there

#: name -> dtype and numbers a row, in the order of the .columns file
COLUMNS: dict[str, tuple[str, tuple[int, ...]]] = {
    "lengths": ("<i4", ()),
    "modes": ("i1", ()),
    "facts": ("<i4", (2,)),
    "sequences": ("<i4", ()),
    "parts": ("u1", ()),
    "records": ("<i8", ()),
    "keys": (f"V{KEY_BYTES}", ()),
}
#: what a part is in, by the ends of the files' names; the .json, of which it is told whether the others are whole, is last
FILES = (".bin", ".columns", ".rejections", ".absent")
SUFFIXES = (*FILES, ".json")


@dataclass
class PartCounts:
    """What became of a unit's records.

    `bytes` and `digests` are the .bin's, `other_digests` those of the other FILES; `reasons` is how many records were set
    aside, by reason, and `first` the quarantine's row of the first of them, its record counted from 0 in the unit.
    """

    records: int = 0
    documents: int = 0
    tokens: int = 0
    bytes: int = 0
    digests: list[str] = field(default_factory=list)
    other_digests: dict[str, list[str]] = field(default_factory=dict)
    filtered: dict[str, int] = field(default_factory=dict)
    reasons: dict[str, int] = field(default_factory=dict)
    first: dict[str, Any] | None = None

    @property
    def lost(self) -> int:
        """How many records were set aside."""
        return sum(self.reasons.values())


class PartWriter:
    """Writes a part aside and names it by `commit`; `discard` leaves nothing. Files are named for the process: a worker that
    outlived its run cannot meddle with another's."""

    def __init__(self, folder: Path, unit: int, only: bool = False) -> None:
        """`only`: it is to become the dataset, as no other is made."""
        self._base = folder / f"{unit:08d}"
        self._suffix = f".{os.getpid()}.partial"
        self._data = HashedFile(self._aside(".bin"), flush_early=only)
        self._columns = {
            name: DiskColumn(folder / f"{unit:08d}.{name}{self._suffix}", dtype) for name, (dtype, _) in COLUMNS.items()
        }
        self._rejections = HashedFile(self._aside(".rejections"))  # on disk: a source may be bad from end to end
        self._absent = HashedFile(self._aside(".absent"))
        self._filtered: Counter[str] = Counter()
        self._reasons: Counter[str] = Counter()
        self.counts = PartCounts()

    def add(self, batch: PreparedBatch, records: int) -> None:
        """`records` is how many the batch was made of."""
        self._data.writelines(batch.pieces)
        for name, values in as_columns(batch).items():
            self._columns[name].extend(values.reshape(-1))
        self.counts.records += records
        self.counts.documents += len(batch.sequences)
        self.counts.tokens += batch.tokens
        self._filtered.update({reason.value: count for reason, count in batch.filtered.items()})
        if not batch.rejections:
            return
        rows = [_row(rejection) for rejection in batch.rejections]
        self.counts.first = self.counts.first or rows[0]
        self._reasons.update(row["reason"] for row in rows)
        self._rejections.write(_lines(rows))

    def add_absent(self, places: Iterable[str]) -> None:
        """Note where pictures were looked for in vain: once one is there, the part is to be made again."""
        self._absent.write(_lines(places))

    def commit(self) -> PartCounts:
        self.counts.bytes = self._data.tell()
        self.counts.filtered, self.counts.reasons = dict(self._filtered), dict(self._reasons)
        self.counts.digests = self._data.digests()
        with HashedFile(self._aside(".columns")) as stream:
            for name, (dtype, row) in COLUMNS.items():
                column = self._columns[name]
                rows = column.count // (row[0] if row else 1)
                header = io.BytesIO()
                shape = {"descr": dtype, "fortran_order": False, "shape": (rows, *row)}
                np.lib.format.write_array_header_1_0(header, shape)
                stream.write(header.getvalue())
                for block in column.blocks():
                    stream.write(block.tobytes())
        written = {".columns": stream, ".rejections": self._rejections, ".absent": self._absent}
        self.counts.other_digests = {suffix: file.digests() for suffix, file in written.items()}
        self._aside(".json").write_text(json.dumps(asdict(self.counts)), encoding="utf-8")
        for suffix in SUFFIXES:
            os.replace(self._aside(suffix), self._base.with_name(self._base.name + suffix))
        self._discard_columns()
        return self.counts

    def discard(self) -> None:
        for file in (self._data, self._rejections, self._absent):
            file.discard()
        self._discard_columns()
        for suffix in SUFFIXES:
            self._aside(suffix).unlink(missing_ok=True)

    def _discard_columns(self) -> None:
        for column in self._columns.values():
            column.discard()

    def _aside(self, suffix: str) -> Path:
        return self._base.with_name(self._base.name + suffix + self._suffix)


class Part:
    """A part that was committed."""

    def __init__(self, folder: Path, unit: int, counts: PartCounts) -> None:
        self._base = folder / f"{unit:08d}"
        self.counts = counts

    @classmethod
    def find(cls, folder: Path, unit: int, verify: bool = False) -> Part | None:
        """The part of a unit, or None where there is none; with `verify`, also where its files are not what was written."""
        path = folder / f"{unit:08d}.json"
        if not path.with_suffix(".bin").is_file():
            return None  # it became a dataset's .bin, and that was not finished
        try:
            part = cls(folder, unit, PartCounts(**json.loads(path.read_text(encoding="utf-8"))))
            return part if not verify or part._is_sound() else None
        except (FileNotFoundError, ValueError, TypeError):
            return None

    def columns(self) -> dict[str, npt.NDArray[Any]]:
        """The arrays of `as_columns`, by name."""
        with open(self._path(".columns"), "rb") as stream:
            return {name: np.load(stream, allow_pickle=False) for name in COLUMNS}

    def rejections(self) -> Iterator[dict[str, Any]]:
        """Rows of the quarantine, one by one; records counted from 0 in the unit."""
        with open(self._path(".rejections"), encoding="utf-8") as stream:
            yield from map(json.loads, stream)

    def lacks_what_is_there(self) -> bool:
        """Whether a picture that was looked for in vain has come since."""
        with open(self._path(".absent"), encoding="utf-8") as stream:
            return any(may_be_there(json.loads(line)) for line in stream)

    def _is_sound(self) -> bool:
        written = {".bin": self.counts.digests, **self.counts.other_digests}
        return all(written.get(suffix) == file_digests(self._path(suffix)) for suffix in FILES)

    @property
    def data_path(self) -> Path:
        """Where the sequences are."""
        return self._path(".bin")

    def _path(self, suffix: str) -> Path:
        return self._base.with_name(self._base.name + suffix)

    def data(self) -> mmap.mmap | bytes:
        """The sequences, mapped."""
        if not self.counts.bytes:
            return b""
        with open(self.data_path, "rb") as stream:
            return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)


def _lines(values: Iterable[Any]) -> bytes:
    """A line of JSON each, in ASCII: a detail may quote text that is no valid Unicode."""
    return "".join(json.dumps(value) + "\n" for value in values).encode("ascii")


def _row(rejection: Rejection) -> dict[str, Any]:
    return {
        "file": rejection.file,
        "offset": rejection.offset,
        "record": rejection.number,
        "key": rejection.key,
        "reason": rejection.reason.value,
        "detail": rejection.detail,
    }
