"""Files of JSON objects, one a line or in an array: where they are cut, and each object or why it is none."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from megatron_vlm.data.quarantine import Reason
from megatron_vlm.data.records import Unit
from megatron_vlm.data.sources.decompression import Damaged, split_compression
from megatron_vlm.data.sources.json_array import begins_array, read_array
from megatron_vlm.data.sources.json_values import as_object, parse_object
from megatron_vlm.data.sources.opening import open_decompressed
from megatron_vlm.data.sources.splitting import BLOCK_BYTES, LONGEST_PIECE, split_stream
from megatron_vlm.data.sources.unusable import Unusable


@dataclass(frozen=True, slots=True)
class JsonObject:
    """What stands where an object is expected.

    Attributes:
        value: the object, or why it is none.
        offset: where it begins, in bytes of the decompressed file.
        bytes_read: of the unit's size, up to its end.
    """

    value: dict[str, Any] | Unusable
    offset: int
    bytes_read: int


def cut_lines(url: str, size: int, target: int) -> list[Unit]:
    """Byte ranges of about `target` bytes; one unit where the file is compressed, or a .json that holds an array."""
    if split_compression(url)[1] or is_array(url):
        return [Unit(url, 0, 1, size)]
    count = max(1, round(size / max(target, 1)))
    borders = [size * n // count for n in range(count + 1)]
    return [Unit(url, start, stop, stop - start) for start, stop in zip(borders, borders[1:], strict=False)]


def is_array(url: str) -> bool:
    """Whether a file is an array of objects rather than lines of them: its name ends in .json, and it begins with "["."""
    if not split_compression(url)[0].endswith(".json"):
        return False
    try:
        with open_decompressed(url) as (stream, _):
            return begins_array(stream)
    except Damaged:
        return False


def too_long(seen: int, limit: int) -> Unusable:
    """What becomes of a line of more than `limit` bytes."""
    return Unusable(Reason.BROKEN_JSON, f"a line of {seen:,} bytes or more; at most {limit:,} are read")


def read_objects(unit: Unit, limit: int = LONGEST_PIECE) -> Iterator[JsonObject]:
    """The objects of a unit, in order; lines of white space are none.

    Raises Damaged where the rest cannot be read.
    """
    if is_array(unit.url):
        yield from _read_array(unit, limit)
        return
    for offset, lines, bytes_read, passed_over in read_lines(unit, limit):
        if passed_over:
            yield JsonObject(too_long(passed_over, limit), offset, bytes_read)
        for line in lines:
            if line and not line.isspace():
                yield JsonObject(_attempt(line), offset, bytes_read)
            offset += len(line) + 1


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
            _go_to(stream, begin)
        for offset, lines, passed_over in split_stream(stream, limit=limit, start=begin, inside=inside, stop=stop):
            if stop is not None:
                if offset >= stop:
                    return
                end = offset + sum(map(len, lines)) + len(lines)
                while lines and end - 1 - len(lines[-1]) >= stop:
                    end -= len(lines.pop()) + 1
            yield offset, lines, min(stored_bytes(), unit.size), passed_over


def _go_to(stream: BinaryIO, offset: int) -> None:
    if stream.seekable():
        stream.seek(offset)
        return
    while offset and (passed := len(stream.read(min(offset, BLOCK_BYTES)))):  # a server that gives no ranges
        offset -= passed


def _attempt(line: bytes) -> dict[str, Any] | Unusable:
    try:
        return parse_object(line)
    except Unusable as defect:
        return defect


def _read_array(unit: Unit, limit: int) -> Iterator[JsonObject]:
    with open_decompressed(unit.url) as (stream, bytes_read):
        for offset, element in read_array(stream, limit):
            try:
                yield JsonObject(as_object(element), offset, min(bytes_read(), unit.size))
            except Unusable as defect:
                yield JsonObject(defect, offset, min(bytes_read(), unit.size))
