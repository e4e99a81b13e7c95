"""Cutting a stream into lines, or at any other separator, block by block and in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

BLOCK_BYTES = 1 << 20
#: bytes of a line or document; longer ones are passed over
LONGEST_PIECE = 256 << 20


def split_stream(
    stream: BinaryIO,
    separator: bytes = b"\n",
    *,
    limit: int = LONGEST_PIECE,
    start: int = 0,
    inside: bool = False,
    stop: int | None = None,
) -> Iterator[tuple[int, list[bytes], int]]:
    """Yield (offset, pieces, passed over): pieces that follow one another with a separator after each, the first of which
    begins at `offset`.

    A piece of more than `limit` bytes comes alone, as (its offset, [], the bytes of it that were seen). What follows the
    last separator is a piece too, unless it is empty.

    Args:
        stream: read from where it is.
        separator: one or more bytes, in none of the pieces.
        limit: the most bytes that a piece may have; about as many are held at once.
        start: the stream's place in the file.
        inside: the stream begins in the midst of a piece, or one separator before the first one: what precedes the first
            separator is dropped, and need not be read wholly.
        stop: where the caller stops: pieces that begin there or later may come, and may be missing.
    """
    keep = len(separator) - 1  # a separator may begin in one block and end in the next
    size = min(BLOCK_BYTES, max(limit, 1))
    read = getattr(stream, "read1", stream.read)  # `read` would lose what precedes damage
    offset, dropping = start, inside
    held: list[bytes] = []  # the piece at hand, as far as it has been read, but for `carry`
    held_bytes = 0
    carry = b""
    while block := read(size):
        if carry:
            block = carry + block
        pieces, carry = _split(block, separator)
        if pieces:
            if held_bytes or dropping:
                held_bytes += len(pieces[0])
                if dropping or held_bytes > limit:
                    if not dropping:
                        yield offset, [], held_bytes
                    offset += held_bytes + len(separator)
                    del pieces[0]
                else:
                    held.append(pieces[0])
                    pieces[0] = b"".join(held)
                held, held_bytes, dropping = [], 0, False
            if pieces:
                yield offset, pieces, 0
                offset += sum(map(len, pieces)) + len(separator) * len(pieces)
        if len(carry) > keep:
            part = carry[: len(carry) - keep]
            carry = carry[len(carry) - keep :]
            held_bytes += len(part)
            if dropping or held_bytes > limit:
                held.clear()
            else:
                held.append(part)
        if stop is not None and (dropping or held_bytes > limit) and offset + held_bytes >= stop:
            break
    if dropping:
        return
    if held_bytes > limit:
        yield offset, [], held_bytes
    elif held_bytes or carry:
        yield offset, [b"".join((*held, carry))], 0


def _split(block: bytes, separator: bytes) -> tuple[list[bytes], bytes]:
    """What `split` gives, the last piece apart. `find` goes over 32 bytes at once, `split` over one."""
    pieces = []
    begin, step = 0, len(separator)
    while (end := block.find(separator, begin)) >= 0:
        pieces.append(block[begin:end])
        begin = end + step
    return pieces, block[begin:]
