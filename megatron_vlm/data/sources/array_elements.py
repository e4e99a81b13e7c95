"""The elements of a JSON array, one by one: files of many gigabytes are never in memory as a whole.

Only the array's own structure is read here: strings, brackets and the commas between elements. Whether an element is JSON
is for its parser to say, so that one broken element does not cost those after it. For the same reason brackets are counted
and not told apart: "{]" is an element, if a broken one.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Iterator

from megatron_vlm.data.sources.decompression import Damaged
from megatron_vlm.data.sources.splitting import BLOCK_BYTES, LONGEST_PIECE

WHITE = b" \t\r\n"

_STRING = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_PLAIN = rb'[^"\[\]{}]*+'


def _flat(plain: bytes) -> bytes:
    # Bounded, because each round is kept for as long as the match lasts; what is left is for the next match.
    return plain + rb"(?:" + _STRING + plain + rb"){0,1000}"


def _skipping(plain: bytes, within: bytes, token: bytes) -> re.Pattern[bytes]:
    """Passes over strings and whole bracketed parts, up to a token in group 1, or as far as what is there can be judged."""
    nested = rb"(?:[\[{]" + within + rb"[\]}]" + _flat(plain) + rb"){0,1000}"
    return re.compile(_flat(plain) + nested + b"(" + token + b")?", re.DOTALL)


def _bracketed(depth: int) -> bytes:
    """The inside of brackets, with `depth` levels of more in it: as deep as most records are, which saves matches."""
    if not depth:
        return _flat(_PLAIN)
    return _flat(_PLAIN) + rb"(?:[\[{]" + _bracketed(depth - 1) + rb"[\]}]" + _flat(_PLAIN) + rb"){0,1000}"


_BETWEEN = _skipping(rb'[^"\[\]{},]*+', _bracketed(2), rb"[\[\]{},]")
_WITHIN = _skipping(_PLAIN, _bracketed(2), rb"[\[\]{}]")  # commas in an element are its own affair


class BrokenArray(Damaged):
    """Where and why the array cannot be read any further; `offset` in bytes."""

    def __init__(self, detail: str, offset: int) -> None:
        super().__init__(f"{detail} at byte {offset:,}")
        self.offset = offset


def read_array(
    read: Callable[[int], bytes], chunk: int = BLOCK_BYTES, longest: int = LONGEST_PIECE
) -> Iterator[tuple[int, bytes]]:
    """Yield (byte at which it begins, text without white space around it) of each element.

    An element may be of any kind; the text is empty where a comma has none before or after it. `read(n)` gives at most n
    bytes, and none at the end. At most about twice `longest` bytes are held.

    Raises:
        BrokenArray: not an array, an element beyond `longest`, an early end, or anything but white space behind the array.
            All elements before that place have been yielded.
        What `read` raises.
    """
    buffer, base = _first_bytes(read, chunk)
    if buffer[:1] != b"[":
        raise BrokenArray("no '[' where an array is expected to begin", base)
    depth = 1  # brackets that are open
    start = at = 1  # of the element, and of what has not been looked at
    elements = 0
    while depth:
        match = (_WITHIN if depth > 1 else _BETWEEN).match(buffer, at)
        if match is None or match.end() == at:
            if len(buffer) - start > longest:
                raise _too_long(longest, base + start)
            more = read(max(chunk, len(buffer) - start))
            if not more:
                break
            buffer, base, at, start = buffer[start:] + more, base + start, at - start, 0
            continue
        at = match.end()
        if match.lastindex is None:
            continue
        token = match[1]
        if token in b"[{":
            depth += 1
            continue
        if token == b"}" and depth == 1:
            raise BrokenArray("'}' closes what it did not open", base + at - 1)
        if token != b",":
            depth -= 1
        if token == b"," or not depth:
            if at - 1 - start > longest:
                raise _too_long(longest, base + start)
            offset, element = _stripped(buffer[start : at - 1], base + start)
            if element or elements or token == b",":
                yield offset, element
            elements += 1
            start = at
    if depth:
        offset, element = _stripped(buffer[start:], base + start)
        if depth == 1 and element.endswith(b"}"):
            yield offset, element
            element = b""
        raise BrokenArray(f"the file ends {'inside an element' if element else 'between elements'}", base + len(buffer))
    rest = buffer[at:]
    while not rest.strip(WHITE):
        base, at = base + at + len(rest), 0
        rest = read(chunk)
        if not rest:
            return
    raise BrokenArray("more follows the array", base + at + len(rest) - len(rest.lstrip(WHITE)))


def _stripped(element: bytes, offset: int) -> tuple[int, bytes]:
    text = element.lstrip(WHITE)
    return offset + len(element) - len(text), text.rstrip(WHITE)


def _too_long(longest: int, offset: int) -> BrokenArray:
    return BrokenArray(f"an element is longer than {longest:,} bytes, or a quote is missing; it begins", offset)


def _first_bytes(read: Callable[[int], bytes], chunk: int) -> tuple[bytes, int]:
    """What has been read, from its first byte that is not white space on, and the offset of that."""
    mark = codecs.BOM_UTF8
    buffer, base = b"", 0
    while more := read(max(chunk, len(mark))):
        buffer += more
        if base == 0 and len(buffer) < len(mark) and mark.startswith(buffer):
            continue
        kept = buffer.removeprefix(mark) if base == 0 else buffer
        kept = kept.lstrip(WHITE)
        base += len(buffer) - len(kept)
        buffer = kept
        if buffer:
            break
    return buffer, base
