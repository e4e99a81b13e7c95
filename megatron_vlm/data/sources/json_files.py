"""Files of JSON objects, one a line or in an array: where they are cut, and each object or why it is none."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from megatron_vlm.data.quarantine import Reason
from megatron_vlm.data.records import Unit
from megatron_vlm.data.sources.array_elements import WHITE, BrokenArray, read_array
from megatron_vlm.data.sources.decompression import Damaged, split_compression
from megatron_vlm.data.sources.json_values import parse_object
from megatron_vlm.data.sources.opening import go_to, open_decompressed
from megatron_vlm.data.sources.splitting import LONGEST_PIECE, split_stream
from megatron_vlm.data.sources.unusable import Unusable
from megatron_vlm.errors import DataError

_HEAD_BYTES = 256
_LONE_BRACE = re.compile(rb"\{[ \t]*\r?\n[ \t]*\"")


@dataclass(frozen=True, slots=True)
class JsonObject:
    """What stands where an object is expected.

    Attributes:
        value: the object, or why it is none; with Reason.BROKEN_FILE, all that follows is lost.
        offset: where it begins, in bytes of the decompressed file.
        bytes_read: of the unit's size, up to its end.
    """

    value: dict[str, Any] | Unusable
    offset: int
    bytes_read: int


def cut_lines(url: str, size: int, target: int) -> list[Unit]:
    """Byte ranges of about `target` bytes; one unit where the file is compressed, or a .json that holds an array.

    Raises DataError where a .json holds one object over several lines, which is no list of records.
    """
    head = _head(url)
    if _LONE_BRACE.match(head):
        raise DataError(
            f"{url} holds one JSON object over several lines, where an array of records or one object a line is expected; "
            "take the list of records out of it"
        )
    if split_compression(url)[1] or head.startswith(b"["):
        return [Unit(url, 0, 1, size)]
    count = max(1, round(size / max(target, 1)))
    borders = [size * n // count for n in range(count + 1)]
    return [Unit(url, start, stop, stop - start) for start, stop in zip(borders, borders[1:], strict=False)]


def is_array(unit: Unit) -> bool:
    """Whether a unit is an array of objects rather than lines of them: a .json that begins with "["."""
    return unit.start == 0 and _head(unit.url).startswith(b"[")


def _head(url: str) -> bytes:
    """How a .json begins, white space left out; nothing of files of lines, and of what cannot be read."""
    head = b""
    if split_compression(url)[0].endswith(".json"):
        with suppress(Damaged), open_decompressed(url) as (stream, _):
            while len(head) < _HEAD_BYTES and (more := stream.read1(_HEAD_BYTES)):
                head = (head + more).removeprefix(codecs.BOM_UTF8).lstrip(WHITE)
    return head


def too_long(seen: int, limit: int) -> Unusable:
    """What becomes of a line of more than `limit` bytes."""
    return Unusable(Reason.BROKEN_JSON, f"a line of {seen:,} bytes or more; at most {limit:,} are read")


def read_objects(unit: Unit, limit: int = LONGEST_PIECE) -> Iterator[JsonObject]:
    """The objects of a unit, in order; lines of white space are none. Never raises for what is in the file."""
    offset = 0
    try:
        for found in _array_objects(unit, limit) if is_array(unit) else _line_objects(unit, limit):
            yield found
            offset = found.offset
    except Damaged as error:
        at = error.offset if isinstance(error, BrokenArray) else offset
        yield JsonObject(Unusable(Reason.BROKEN_FILE, str(error)), at, unit.size)


def read_lines(unit: Unit, limit: int = LONGEST_PIECE) -> Iterator[tuple[int, list[bytes], int, int]]:
    """Yield (offset, lines, bytes_read, passed_over) for each block of the lines that begin in a unit: `offset` is the first
    line's, and `bytes_read` what has been read of the unit's size when the last one's end is reached.

    Instead of a line of more than `limit` bytes comes a block without lines and with the bytes `passed_over`.

    Raises Damaged where the rest cannot be read.
    """
    compressed = bool(split_compression(unit.url)[1])
    with open_decompressed(unit.url) as (stream, stored_bytes):
        inside = not compressed and unit.start > 0
        begin = unit.start - 1 if inside else 0  # the byte before tells whether a line begins at `start`
        stop = None if compressed else unit.stop
        if begin:
            go_to(stream, begin)
        for offset, lines, passed_over in split_stream(stream, limit=limit, start=begin, inside=inside, stop=stop):
            if stop is not None:
                if offset >= stop:
                    return
                end = offset + sum(map(len, lines)) + len(lines)
                while lines and end - 1 - len(lines[-1]) >= stop:
                    end -= len(lines.pop()) + 1
            yield offset, lines, min(stored_bytes(), unit.size), passed_over


def _line_objects(unit: Unit, limit: int) -> Iterator[JsonObject]:
    for offset, lines, bytes_read, passed_over in read_lines(unit, limit):
        if passed_over:
            yield JsonObject(too_long(passed_over, limit), offset, bytes_read)
        for line in lines:
            if line and not line.isspace():
                yield JsonObject(_attempt(line), offset, bytes_read)
            offset += len(line) + 1


def _array_objects(unit: Unit, limit: int) -> Iterator[JsonObject]:
    with open_decompressed(unit.url) as (stream, stored_bytes):
        # `read` would lose what precedes damage
        for offset, element in read_array(stream.read1, longest=limit):
            yield JsonObject(_attempt(element), offset, min(stored_bytes(), unit.size))


def _attempt(text: bytes) -> dict[str, Any] | Unusable:
    try:
        return parse_object(text)
    except Unusable as defect:
        return defect
