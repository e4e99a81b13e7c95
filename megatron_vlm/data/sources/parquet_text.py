"""Text documents out of a column of parquet files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from megatron_vlm.data.quarantine import Reason, Rejection
from megatron_vlm.data.records import Record, Text, Unit
from megatron_vlm.data.sources.json_values import check_text, is_encodable
from megatron_vlm.data.sources.parquet_rows import column_names, cut_row_groups, read_rows, require_columns
from megatron_vlm.data.sources.text_tar import decode_text
from megatron_vlm.data.sources.unusable import Unusable

ROWS_AT_ONCE = 256


@dataclass(frozen=True, slots=True)
class ParquetText:
    """Documents in column `key` of parquet files, a row each; units are runs of row groups.

    A record's key is in the column "id", where there is one; its offset is its row, counted from 0 in the file. A column of
    bytes is taken for UTF-8.

    Attributes:
        key: the column; where there is none of that name, dots lead into structs ("meta.text").
    """

    key: str = "text"

    def units(self, url: str, size: int, target: int) -> Sequence[Unit]:
        """Raises DataError also where the file has no column `key`."""
        names = column_names(url)
        if names is not None:
            require_columns(url, names, [self.key])
        return cut_row_groups(url, size, target)

    def read(self, unit: Unit) -> Iterator[Record | Rejection]:
        for number, found in enumerate(read_rows(unit, [self.key, "id"], ROWS_AT_ONCE)):
            if isinstance(found, Rejection):
                yield found
                return
            row, values, bytes_read = found
            name = values.get("id")
            name = str(name) if isinstance(name, str | int) and is_encodable(str(name)) else ""
            try:
                text = _text(values.get(self.key), self.key)
            except Unusable as defect:
                yield Rejection(unit.url, name, defect.reason, str(defect), row, number, bytes_read)
            else:
                yield Record(name, row, ((Text(text),),), bytes_read, number)


def _text(value: Any, key: str) -> str:
    where = f"column {key!r}"
    if isinstance(value, UnicodeDecodeError):
        raise Unusable(Reason.INVALID_UNICODE, f"{where}: {value}")
    if isinstance(value, bytes):
        value = decode_text(value, where)
    return check_text(value, where)
