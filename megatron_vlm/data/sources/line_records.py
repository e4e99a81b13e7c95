"""Opening source files, and the lines of a unit: the one place where the readers of documents touch a file system."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

import orjson

from megatron_vlm.data.quarantine import Reason
from megatron_vlm.data.records import Unit
from megatron_vlm.data.sources.decompression import Damaged, split_compression
from megatron_vlm.data.sources.defect import Defect
from megatron_vlm.data.sources.opening import open_decompressed, open_input

__all__ = [
    "DAMAGE",
    "Line",
    "Opened",
    "is_compressed",
    "line_units",
    "open_file",
    "open_plain",
    "parse_object",
    "read_lines",
]

CHUNK = 1 << 18
#: what reading a damaged file raises
DAMAGE: tuple[type[Exception], ...] = (Damaged, OSError, EOFError)
LONGEST_LINE = 1 << 28  # bytes; a longer line is passed over rather than taken into memory
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Opened:
    """A file being read: `stream` gives the decompressed bytes, `stored_bytes` tells how many of the stored ones were read."""

    stream: BinaryIO
    stored_bytes: Callable[[], int]


@dataclass(frozen=True, slots=True)
class Line:
    """One line without its newline; `content` is None where it is longer than `LONGEST_LINE`.

    `offset` is where it begins in the decompressed text, `bytes_read` how much of the unit's bytes has been read.
    """

    content: bytes | None
    offset: int
    bytes_read: int


def is_compressed(url: str) -> bool:
    return bool(split_compression(url)[1])


def open_plain(url: str) -> BinaryIO:
    """The stored bytes of a local file, or of what fsspec opens. Raises OSError."""
    return open_input(url)


@contextmanager
def open_file(url: str) -> Iterator[Opened]:
    """Open a compressed or plain file. Reading raises one of `DAMAGE` where compressed data is corrupt or ends early."""
    with open_decompressed(url) as (stream, stored_bytes):
        yield Opened(stream, stored_bytes)


def line_units(url: str, size: int, target: int) -> list[Unit]:
    """Byte ranges of about `target` bytes; one unit for a compressed file, which cannot be entered in the middle."""
    if is_compressed(url):
        return [Unit(url, 0, 1, size)]
    count = max(1, round(size / max(1, target)))
    cuts = [index * size // count for index in range(count + 1)]
    return [Unit(url, start, stop, stop - start) for start, stop in zip(cuts, cuts[1:], strict=False)]


def read_lines(unit: Unit) -> Iterator[Line]:
    """The lines that begin inside `unit`, blank ones left out; all lines of a compressed file. Raises one of `DAMAGE`."""
    whole = is_compressed(unit.url)
    with open_file(unit.url) as opened:
        at = 0
        if not whole and unit.start > 0:
            # from the byte before: a line that begins exactly at `start` is this unit's
            at = unit.start - 1
            opened.stream.seek(at)
            at += _skip_line(opened.stream)
        while whole or at < unit.stop:
            content = opened.stream.readline(LONGEST_LINE + 1)
            if not content:
                return
            offset = at
            at += len(content)
            overlong = len(content) > LONGEST_LINE and not content.endswith(b"\n")
            if overlong:
                at += _skip_line(opened.stream)
            done = min(unit.size, opened.stored_bytes() if whole else at - unit.start)
            if overlong:
                yield Line(None, offset, done)
                continue
            if offset == 0:
                content = content.removeprefix(BYTE_ORDER_MARK)
            content = content.rstrip(b"\r\n")
            if content and not content.isspace():
                yield Line(content, offset, done)


def _skip_line(stream: BinaryIO) -> int:
    """Read past the next newline; the number of bytes passed over."""
    passed = 0
    while part := stream.readline(CHUNK):
        passed += len(part)
        if part.endswith(b"\n"):
            break
    return passed


def parse_object(text: bytes) -> dict[str, Any]:
    """The JSON object that `text` holds. Raises Defect: BROKEN_JSON or INVALID_UNICODE.

    NaN and halves of surrogate pairs pass, as in Python's own reader: whether they do harm depends on the field.
    """
    value: Any
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        try:
            value = json.loads(text.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise Defect(Reason.INVALID_UNICODE, str(error)) from None
        except (ValueError, RecursionError) as error:
            raise Defect(Reason.BROKEN_JSON, str(error)) from None
    if not isinstance(value, dict):
        raise Defect(Reason.BROKEN_JSON, f"a {type(value).__name__} where an object is expected")
    return value
