"""Text documents out of a column of parquet files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from megatron_vlm.data.quarantine import Rejection
from megatron_vlm.data.records import Record, Text, Unit
from megatron_vlm.data.sources.json_values import check_text, record_key
from megatron_vlm.data.sources.parquet_rows import cut_row_groups, read_row_groups, require_columns
from megatron_vlm.data.sources.text_tar import decode_text
from megatron_vlm.data.sources.unusable import Unusable


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
        return cut_row_groups(url, size, target, lambda names: require_columns(url, names, [self.key]))

    def read(self, unit: Unit) -> Iterator[Record | Rejection]:
        for number, row in enumerate(read_row_groups(unit, [self.key, "id"])):
            name = ""
            try:
                if isinstance(row.value, Unusable):
                    raise row.value
                name = record_key(row.value)
                text = _text(row.value.get(self.key), self.key)
            except Unusable as defect:
                yield Rejection(unit.url, name, defect.reason, str(defect), row.offset, number, row.bytes_read)
            else:
                yield Record(name, row.offset, ((Text(text),),), row.bytes_read, number)


def _text(value: Any, key: str) -> str:
    where = f"column {key!r}"
    if isinstance(value, Unusable):
        raise Unusable(value.reason, f"{where}: {value}")
    if isinstance(value, bytes):
        value = decode_text(value, where)
    return check_text(value, where)
