"""Text documents out of tars: a .json or a .txt each, as WebDataset keeps them."""

from __future__ import annotations

from codecs import BOM_UTF8
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from megatron_vlm.data.quarantine import Reason, Rejection
from megatron_vlm.data.records import Record, Text, Unit
from megatron_vlm.data.sources.json_values import check_text, document_text, find_field, is_encodable, parse_object
from megatron_vlm.data.sources.splitting import LONGEST_PIECE
from megatron_vlm.data.sources.tar_groups import CutShort, Group, read_groups
from megatron_vlm.data.sources.unusable import Unusable


@dataclass(frozen=True, slots=True)
class TextTar:
    """Documents of a tar, plain or compressed: field `key` of each .json, or else the .txt of the same name.

    A tar is one unit. A record's key is its path up to the first dot of the file name, its offset where its first member's
    headers begin in the decompressed tar. Members of other kinds are passed over.

    Attributes:
        key: the field; where an object has none of that name, dots lead into objects ("meta.text").
        limit: bytes of the longest member; a longer one is rejected, unread.
    """

    key: str = "text"
    limit: int = LONGEST_PIECE

    def units(self, url: str, size: int, target: int) -> Sequence[Unit]:
        return [Unit(url, 0, 1, size)]

    def read(self, unit: Unit) -> Iterator[Record | Rejection]:
        number = 0
        try:
            for number, group in enumerate(read_groups(unit, _part_of, self.limit), start=1):
                yield self._judge(unit, group, number - 1)
        except CutShort as damage:
            yield rest_of_tar(unit, damage, number)

    def _judge(self, unit: Unit, group: Group, number: int) -> Record | Rejection:
        try:
            if group.defect is not None:
                raise group.defect
            text = self._text(group)
        except Unusable as defect:
            return rejected_group(unit, group, defect, number)
        return Record(printable(group.key), group.offset, ((Text(text),),), group.bytes_read, number)

    def _text(self, group: Group) -> str:
        if "json" in group.parts:
            record = parse_object(group.parts["json"])
            if "txt" not in group.parts or find_field(record, self.key) is not None:
                return document_text(record, self.key)
        return check_text(decode_text(group.parts["txt"], ".txt"), "the .txt")


def _part_of(suffix: str) -> str | None:
    return suffix if suffix in ("json", "txt") else None


def decode_text(content: bytes, where: str) -> str:
    """A text file's content. Raises Unusable where it is no UTF-8."""
    try:
        return content.removeprefix(BOM_UTF8).decode()  # "utf-8-sig" is written in Python, and slow
    except UnicodeDecodeError as error:
        raise Unusable(Reason.INVALID_UNICODE, f"{where}: {error}") from error


def printable(key: str) -> str:
    """A key that can be written down: a tar may name its members in bytes that are no UTF-8."""
    return key if is_encodable(key) else key.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def rejected_group(unit: Unit, group: Group, defect: Unusable, number: int) -> Rejection:
    return Rejection(unit.url, printable(group.key), defect.reason, str(defect), group.offset, number, group.bytes_read)


def rest_of_tar(unit: Unit, damage: CutShort, number: int) -> Rejection:
    """The rejection of all that follows, with the group that may have lost members."""
    key = printable(damage.group.key) if damage.group is not None else ""
    return Rejection(unit.url, key, Reason.BROKEN_FILE, str(damage), damage.offset, number, unit.size)
