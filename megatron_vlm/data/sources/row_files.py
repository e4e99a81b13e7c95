"""Records as maps of fields out of .jsonl, .json and .parquet files, whatever the fields mean."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from megatron_vlm.data.quarantine import Rejection
from megatron_vlm.data.records import Unit
from megatron_vlm.data.sources.json_files import cut_lines, read_objects
from megatron_vlm.data.sources.parquet_rows import cut_row_groups, read_row_groups
from megatron_vlm.data.sources.suffixes import JSON_SUFFIXES, PARQUET_SUFFIXES, is_parquet
from megatron_vlm.data.sources.unusable import Unusable
from megatron_vlm.errors import DataError

SUFFIXES = (*JSON_SUFFIXES, *PARQUET_SUFFIXES)


@dataclass(frozen=True, slots=True)
class Row:
    """One record's fields; the rest as of `megatron_vlm.data.records.Record`."""

    fields: dict[str, Any]
    offset: int
    bytes_read: int
    number: int


def row_units(url: str, size: int, target: int, needed: Sequence[str] = ()) -> list[Unit]:
    """Cut a file: lines into byte ranges, parquet into runs of row groups; a JSON array or a compressed file is one unit.

    Raises DataError where a .parquet is none or has none of the columns `needed`, or a .json holds one object and no array.
    """
    if not is_parquet(url):
        return cut_lines(url, size, target)

    def check(names: list[str]) -> None:
        if needed and not set(needed) & set(names):
            wanted, found = (", ".join(map(repr, several)) for several in (needed, names))
            raise DataError(
                f"{url} has none of the columns {wanted}; it has {found or 'none'}. Rename one, or check what it holds"
            )

    return cut_row_groups(url, size, target, check)


def read_rows(unit: Unit, columns: Sequence[str] | None = None) -> Iterator[Row | Rejection]:
    """The records of a unit, in order; of a parquet file only `columns`. Never raises for what is in the file."""
    for number, (value, offset, bytes_read) in enumerate(_found(unit, columns)):
        if isinstance(value, Unusable):
            yield Rejection(unit.url, "", value.reason, str(value), offset, number, bytes_read)
        else:
            yield Row(value, offset, bytes_read, number)


def _found(unit: Unit, columns: Sequence[str] | None) -> Iterator[tuple[dict[str, Any] | Unusable, int, int]]:
    if is_parquet(unit.url):
        for row in read_row_groups(unit, columns):
            yield _defect(row.value), row.offset, row.bytes_read
    else:
        for found in read_objects(unit):
            yield found.value, found.offset, found.bytes_read


def _defect(values: dict[str, Any] | Unusable) -> dict[str, Any] | Unusable:
    """The values of a row, or what is wrong with one of them."""
    if isinstance(values, Unusable):
        return values
    return next((value for value in values.values() if isinstance(value, Unusable)), values)
