"""The elements of a JSON array, one by one: files of many gigabytes are never in memory as a whole.

Only the array's own structure is read here: strings, brackets and the commas between elements. Whether an element is JSON
is for its parser to say, so that one broken element does not cost those after it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

CHUNK = 1 << 20
LONGEST_ELEMENT = 1 << 28  # bytes
WHITE = b" \t\r\n"
BYTE_ORDER_MARK = b"\xef\xbb\xbf"

# What goes before, then a whole string, or group 1. No match: a string does not end in what has been read, or that is all.
_STRING = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_BETWEEN = re.compile(rb'[^"\[\]{},]*+(?:' + _STRING + rb"|([\[\]{},]))", re.DOTALL)
_WITHIN = re.compile(rb'[^"\[\]{}]*+(?:' + _STRING + rb"|([\[\]{}]))", re.DOTALL)  # commas in an element are its own affair
_CLOSING = {ord("["): ord("]"), ord("{"): ord("}")}
_COMMA = ord(",")


class BrokenArray(Exception):
    """Where and why the array cannot be read any further; `offset` in bytes."""

    def __init__(self, detail: str, offset: int) -> None:
        super().__init__(f"{detail} at byte {offset:,}")
        self.offset = offset


def read_json_array(
    read: Callable[[int], bytes], chunk: int = CHUNK, longest: int = LONGEST_ELEMENT
) -> Iterator[tuple[int, bytes]]:
    """Yield (byte at which it begins, text without white space around it) of each element.

    An element may be of any kind; the text is empty where a comma has none before or after it. `read(n)` gives at most n
    bytes, and none at the end. At most about twice `longest` bytes are held.

    Raises:
        BrokenArray: not an array, brackets that do not match, an element beyond `longest`, an early end, or anything but
            white space behind the array. All elements before that place have been yielded.
        What `read` raises.
    """
    buffer, base = _first_bytes(read, chunk)
    if buffer[:1] != b"[":
        raise BrokenArray("no '[' where an array is expected to begin", base)
    expected = bytearray(b"]")  # the brackets that close what is open
    start = at = 1  # of the element, and of what has not been looked at
    elements = 0
    while True:
        match = (_WITHIN if len(expected) > 1 else _BETWEEN).match(buffer, at)
        if match is None:
            if len(buffer) - start > longest:
                raise _too_long(longest, base + start)
            more = read(max(chunk, len(buffer) - start))
            if not more:
                where = "between elements" if not buffer[start:].strip(WHITE) else "inside an element"
                raise BrokenArray(f"the file ends {where}", base + len(buffer))
            buffer, base, at, start = buffer[start:] + more, base + start, at - start, 0
            continue
        at = match.end()
        if match.lastindex is None:
            continue
        begin = at - 1
        token = buffer[begin]
        if token in _CLOSING:
            expected.append(_CLOSING[token])
            continue
        if token != _COMMA and expected.pop() != token:
            raise BrokenArray(f"{chr(token)!r} closes what it did not open", base + begin)
        if token == _COMMA or not expected:
            if begin - start > longest:
                raise _too_long(longest, base + start)
            element = buffer[start:begin].lstrip(WHITE)
            offset = base + begin - len(element)
            element = element.rstrip(WHITE)
            if element or elements or token == _COMMA:
                yield offset, element
            elements += 1
            start = at
        if not expected:
            break
    rest = buffer[at:]
    while not rest.strip(WHITE):
        base, at = base + at + len(rest), 0
        rest = read(chunk)
        if not rest:
            return
    raise BrokenArray("more follows the array", base + at + len(rest) - len(rest.lstrip(WHITE)))


def _too_long(longest: int, offset: int) -> BrokenArray:
    return BrokenArray(f"an element is longer than {longest:,} bytes, or a quote is missing; it begins", offset)


def _first_bytes(read: Callable[[int], bytes], chunk: int) -> tuple[bytes, int]:
    """What has been read, from its first byte that is not white space on, and the offset of that."""
    buffer, base = b"", 0
    while more := read(max(chunk, len(BYTE_ORDER_MARK))):
        buffer += more
        if base == 0 and len(buffer) < len(BYTE_ORDER_MARK) and BYTE_ORDER_MARK.startswith(buffer):
            continue
        kept = buffer.removeprefix(BYTE_ORDER_MARK) if base == 0 else buffer
        kept = kept.lstrip(WHITE)
        base += len(buffer) - len(kept)
        buffer = kept
        if buffer:
            break
    return buffer, base
