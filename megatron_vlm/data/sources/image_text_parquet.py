"""Captioned pictures out of parquet: a column of encoded pictures, and columns of captions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from megatron_vlm.data.quarantine import Reason, Rejection
from megatron_vlm.data.records import Record, Unit
from megatron_vlm.data.sources.caption_rule import CaptionRule, picture_documents
from megatron_vlm.data.sources.file_names import base_name
from megatron_vlm.data.sources.json_values import kind_of, record_key, shown
from megatron_vlm.data.sources.parquet_rows import cut_row_groups, read_row_groups, require_columns
from megatron_vlm.data.sources.unusable import Unusable
from megatron_vlm.errors import DataError

PICTURE_COLUMNS = ("image", "jpg", "png", "webp", "image_bytes")
CAPTION_COLUMNS = ("caption", "text", "txt")
KEY_COLUMNS = ("id", "key", "__key__", "uid")


@dataclass(frozen=True, slots=True)
class ImageTextParquet:
    """Captioned pictures of parquet files, a row each; units are runs of row groups.

    The picture's column holds the bytes of a .jpg, .png or .webp, or structs {bytes, path} as the `datasets` library writes
    them; a path without bytes is not followed. Where there is a column "status", as img2dataset writes it, rows that do not
    say "success" are rejected. A record's key is in a column "id", "key", "__key__" or "uid"; its offset is its row.

    Attributes:
        captions: its fields are columns of strings or of lists of strings; by default "caption", "text" or "txt".
        image: the picture's column; by default the first that there is of "image", "jpg", "png", "webp", "image_bytes".
    """

    captions: CaptionRule = CaptionRule()
    image: str | None = None

    def units(self, url: str, size: int, target: int) -> Sequence[Unit]:
        """Raises DataError also where the file has no column for the pictures, or none of the captions'."""

        def check(names: list[str]) -> None:
            if self.image is not None:
                require_columns(url, names, [self.image])
            elif not set(PICTURE_COLUMNS) & set(names):
                raise _no_column(url, names, "pictures", PICTURE_COLUMNS)
            wanted = [name for name, _ in self.captions.fields] or list(CAPTION_COLUMNS)
            if not set(wanted) & set(names):
                raise _no_column(url, names, "captions", tuple(wanted))

        return cut_row_groups(url, size, target, check)

    def read(self, unit: Unit) -> Iterator[Record | Rejection]:
        captions = [name for name, _ in self.captions.fields] or list(CAPTION_COLUMNS)
        pictures = [self.image] if self.image is not None else list(PICTURE_COLUMNS)
        wanted = [*captions, *pictures, *KEY_COLUMNS, "status", "error_message"]
        for number, row in enumerate(read_row_groups(unit, wanted)):
            key = ""
            try:
                if isinstance(row.value, Unusable):
                    raise row.value
                key = record_key(row.value, KEY_COLUMNS)
                image = next((row.value[name] for name in pictures if name in row.value), None)
                chosen = self._captions(unit, row.value, row.offset, key)
                documents = picture_documents(_encoded(image), chosen)
            except Unusable as defect:
                yield Rejection(unit.url, key, defect.reason, str(defect), row.offset, number, row.bytes_read)
            else:
                yield Record(key, row.offset, documents, row.bytes_read, number)

    def _captions(self, unit: Unit, values: dict[str, Any], row: int, key: str) -> tuple[str, ...]:
        status = values.get("status") or "success"
        if status != "success":
            message = shown(values.get("error_message") or "no message")
            raise Unusable(Reason.FAILED_DOWNLOAD, f"status is {shown(status)}: {message}")

        def find(name: str) -> Any:
            value = values.get(name)
            if isinstance(value, Unusable):
                raise Unusable(value.reason, f"column {name!r}: {value}")
            return value

        def known() -> str:
            return ", ".join(repr(name) for name, value in values.items() if value is not None) or "only nulls"

        return self.captions.choose(find, CAPTION_COLUMNS, key or f"{base_name(unit.url)}:{row}", known)


def _encoded(value: Any) -> bytes:
    if isinstance(value, Unusable):
        raise value
    if isinstance(value, dict):
        if value.get("bytes") is None:
            where = f"; its path {shown(value['path'])} is not followed" if value.get("path") else ""
            raise Unusable(Reason.MISSING_IMAGE, f"the picture has no bytes{where}")
        value = value["bytes"]
    if isinstance(value, bytes) and value:
        return value
    what = "empty" if value == b"" else f"{kind_of(value)}, not the bytes of a file"
    raise Unusable(Reason.MISSING_IMAGE, f"the picture is {what}")


def _no_column(url: str, names: list[str], what: str, wanted: tuple[str, ...]) -> DataError:
    expected = " or ".join(map(repr, wanted))
    return DataError(f"{url} has no column of {what} ({expected}); it has {', '.join(names)}; name the one that it is")
