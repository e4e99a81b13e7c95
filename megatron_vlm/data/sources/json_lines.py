"""Text documents out of JSON: one object a line, or the elements of an array; one document an object."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import orjson

from megatron_vlm.data.quarantine import Reason, Rejection
from megatron_vlm.data.records import Record, Text, Unit
from megatron_vlm.data.sources.decompression import Damaged
from megatron_vlm.data.sources.json_files import cut_lines, is_array, read_lines, read_objects, too_long
from megatron_vlm.data.sources.json_values import document_text, parse_object, record_key
from megatron_vlm.data.sources.splitting import LONGEST_PIECE
from megatron_vlm.data.sources.unusable import Unusable


@dataclass(frozen=True, slots=True)
class JsonLines:
    """Documents in field `key` of the objects of .jsonl, .ndjson and .json files, plain or compressed.

    Plain files are cut into ranges of lines; compressed ones, and a .json that holds an array, are one unit. Lines of white
    space are no records. A record's key is its field "id", its offset is in bytes of the decompressed file.

    Attributes:
        key: the field; where an object has none of that name, dots lead into objects ("meta.text").
        limit: bytes of the longest line; a longer one is rejected, unread.
    """

    key: str = "text"
    limit: int = LONGEST_PIECE

    def units(self, url: str, size: int, target: int) -> Sequence[Unit]:
        return cut_lines(url, size, target)

    def read(self, unit: Unit) -> Iterator[Record | Rejection]:
        return self._read_array(unit) if is_array(unit) else self._read_lines(unit)

    def _read_lines(self, unit: Unit) -> Iterator[Record | Rejection]:
        loads, key = orjson.loads, self.key
        number = offset = 0
        try:
            for offset, lines, bytes_read, passed_over in read_lines(unit, self.limit):
                if passed_over:
                    defect = too_long(passed_over, self.limit)
                    yield Rejection(unit.url, "", defect.reason, str(defect), offset, number, bytes_read)
                    number += 1
                    offset += passed_over
                for line in lines:
                    try:
                        record = loads(line)
                        text = record[key]
                        name = record.get("id", "")
                        if type(name) is not str:
                            name = str(name) if type(name) is int else record_key(record)
                        sound = type(text) is str and text and not text.isspace()
                    except (orjson.JSONDecodeError, KeyError, TypeError):
                        sound = False
                    if sound:  # orjson gives no lone surrogates
                        yield Record(name, offset, ((Text(text),),), bytes_read, number)
                        number += 1
                    elif line and not line.isspace():
                        yield self._judge(unit, line, offset, number, bytes_read)
                        number += 1
                    offset += len(line) + 1
        except Damaged as error:
            yield Rejection(unit.url, "", Reason.BROKEN_FILE, str(error), offset, number, unit.size)

    def _read_array(self, unit: Unit) -> Iterator[Record | Rejection]:
        for number, found in enumerate(read_objects(unit, self.limit)):
            yield self._judge(unit, found.value, found.offset, number, found.bytes_read)

    def _judge(
        self, unit: Unit, found: bytes | dict[str, object] | Unusable, offset: int, number: int, bytes_read: int
    ) -> Record | Rejection:
        """The long way: what is wrong with a record, or the record if nothing is."""
        name = ""
        try:
            if isinstance(found, Unusable):
                raise found
            record = parse_object(found) if isinstance(found, bytes) else found
            name = record_key(record)
            return Record(name, offset, ((Text(document_text(record, self.key)),),), bytes_read, number)
        except Unusable as defect:
            return Rejection(unit.url, name, defect.reason, str(defect), offset, number, bytes_read)
