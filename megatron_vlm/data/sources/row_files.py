"""Records as maps of fields out of .jsonl, .json and .parquet files, whatever the fields mean."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from megatron_vlm.data.quarantine import Reason, Rejection
from megatron_vlm.data.records import Unit
from megatron_vlm.data.sources.array_elements import BYTE_ORDER_MARK, WHITE, BrokenArray, read_json_array
from megatron_vlm.data.sources.defect import Defect
from megatron_vlm.data.sources.line_records import (
    DAMAGE,
    LONGEST_LINE,
    line_units,
    open_file,
    parse_object,
    read_lines,
)
from megatron_vlm.data.sources.parquet_maps import parquet_units, read_parquet_rows
from megatron_vlm.errors import DataError

LINES = (".jsonl", ".ndjson")
JSON = ".json"  # an array, or one object a line
PARQUET = (".parquet",)
#: what the name of a file may end in
SUFFIXES = (*LINES, JSON, *(suffix + packed for suffix in (*LINES, JSON) for packed in (".gz", ".zst")), *PARQUET)


@dataclass(frozen=True, slots=True)
class Row:
    """One record's fields; the rest as of `megatron_vlm.data.records.Record`."""

    fields: dict[str, Any]
    offset: int
    bytes_read: int
    number: int


#: fields or what is wrong with them, offset, bytes read
_Found: TypeAlias = tuple[dict[str, Any] | Defect, int, int]


def row_units(url: str, size: int, target: int, needed: Sequence[str] = ()) -> list[Unit]:
    """Cut a file: lines into byte ranges, parquet into runs of row groups; a JSON array or a compressed file is one unit.

    Raises DataError where a .parquet is none or has none of the columns `needed`, or a .json holds one object and no array.
    """
    if url.endswith(PARQUET):
        return parquet_units(url, size, target, needed)
    return [Unit(url, 0, 1, size)] if _is_array(url, check=True) else line_units(url, size, target)


def read_rows(unit: Unit, columns: Sequence[str] | None = None) -> Iterator[Row | Rejection]:
    """The records of a unit, in order; of a parquet file only `columns`. Never raises for what is in the file."""
    number = itertools.count()
    for found, offset, bytes_read in _found(unit, columns):
        if isinstance(found, Defect):
            yield Rejection(unit.url, "", found.reason, str(found), offset, next(number), bytes_read)
        else:
            yield Row(found, offset, bytes_read, next(number))


def _found(unit: Unit, columns: Sequence[str] | None) -> Iterator[_Found]:
    if unit.url.endswith(PARQUET):
        for row in read_parquet_rows(unit, columns):
            yield row.value, row.offset, row.bytes_read
        return
    offset = bytes_read = 0
    try:
        is_array = unit.start == 0 and _is_array(unit.url)
        for text, offset, bytes_read in _array_texts(unit) if is_array else _line_texts(unit):
            try:
                if text is None:
                    raise Defect(Reason.BROKEN_JSON, f"a line of more than {LONGEST_LINE:,} bytes")
                yield parse_object(text), offset, bytes_read
            except Defect as defect:
                yield defect, offset, bytes_read
    except BrokenArray as error:
        yield Defect(Reason.BROKEN_FILE, str(error)), error.offset, unit.size
    except DAMAGE as error:
        yield Defect(Reason.BROKEN_FILE, str(error)), offset, unit.size


def _line_texts(unit: Unit) -> Iterator[tuple[bytes | None, int, int]]:
    for line in read_lines(unit):
        yield line.content, line.offset, line.bytes_read


def _array_texts(unit: Unit) -> Iterator[tuple[bytes, int, int]]:
    with open_file(unit.url) as opened:
        for offset, text in read_json_array(opened.stream.read):
            yield text, offset, min(unit.size, opened.stored_bytes())


def _is_array(url: str, check: bool = False) -> bool:
    """Whether a .json begins an array; otherwise it has to be lines, which `check` makes sure of."""
    if JSON not in (url[-5:], url[-8:-3], url[-9:-4]):
        return False
    try:
        with open_file(url) as opened:
            first = opened.stream.readline(1 << 20).removeprefix(BYTE_ORDER_MARK)
            while first and not first.strip(WHITE):
                first = opened.stream.readline(1 << 20)
            complete = first.endswith(b"\n") or len(first) < 1 << 20
    except DAMAGE:
        return False  # comes up again, and is told, when the file is read
    if first.lstrip(WHITE).startswith(b"["):
        return True
    if check and complete and first.strip(WHITE) == b"{":
        raise DataError(
            f"{url} holds one JSON object over several lines, where an array of records or one object a line is expected; "
            f"take the list of records out of it"
        )
    return False


def record_key(fields: dict[str, Any], names: Sequence[str]) -> str:
    """What names a record: the first of `names` that is a text or a whole number; "" where none is."""
    for name in names:
        value = fields.get(name)
        if isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool)):
            return str(value)
    return ""
