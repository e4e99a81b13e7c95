"""The elements of a JSON array, one by one, however long it is."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

from megatron_vlm.data.sources.decompression import Damaged
from megatron_vlm.data.sources.splitting import BLOCK_BYTES, LONGEST_PIECE

_SPACE = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()


def begins_array(stream: BinaryIO) -> bool:
    """Whether the first thing in `stream` is a "[". Reads the first bytes of it."""
    return stream.read(4096).removeprefix(codecs.BOM_UTF8).lstrip(b" \t\n\r").startswith(b"[")


def read_array(stream: BinaryIO, limit: int = LONGEST_PIECE) -> Iterator[tuple[int, Any]]:
    """Yield (offset in bytes, element) of the array that `stream` holds, holding a block and an element at a time.

    Bytes that are no UTF-8 come as lone surrogates, which `is_encodable` finds.

    Raises Damaged: the array breaks off, or is no JSON from somewhere on, or has an element of more than `limit` characters.
    """
    window = _Window(stream, limit)
    window.skip_space()
    if not window.take("["):
        raise Damaged("it does not begin with '[', as an array does")
    window.skip_space()
    if not window.take("]"):
        while True:
            yield window.offset, window.element()
            window.skip_space()
            if window.take("]"):
                break
            if not window.take(","):
                raise Damaged(f"neither ',' nor ']' after the element before byte {window.offset}")
            window.skip_space()
    window.skip_space()
    if not window.ended:
        raise Damaged(f"something follows the array, at byte {window.offset}")


class _Window:
    """Decoded text of a stream around the place that is read."""

    def __init__(self, stream: BinaryIO, limit: int) -> None:
        self.offset = 0  # of the place, in bytes
        self._stream = stream
        self._limit = limit
        self._decode = codecs.getincrementaldecoder("utf-8")(errors="surrogateescape").decode
        self._text, self._at = "", 0
        self._whole = False  # everything has been read
        self._extend()
        if self._text.startswith("\ufeff"):
            self._advance(1)

    @property
    def ended(self) -> bool:
        return self._whole and self._at == len(self._text)

    def skip_space(self) -> None:
        while True:
            match = _SPACE.match(self._text, self._at)
            self._advance(match.end() if match is not None else self._at)
            if self._at < len(self._text) or not self._extend():
                return

    def take(self, mark: str) -> bool:
        if not self._text.startswith(mark, self._at):
            return False
        self._advance(self._at + 1)
        return True

    def element(self) -> Any:
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
                if end < len(self._text) or self._whole:  # else a number might go on
                    self._advance(end)
                    return value
            except json.JSONDecodeError as error:
                if self._whole:
                    what = "the array breaks off" if error.pos >= len(self._text) else error.msg
                    raise Damaged(f"{what} in the element at byte {self.offset}") from error
            except (ValueError, RecursionError) as error:
                raise Damaged(f"{error} in the element at byte {self.offset}") from error
            if len(self._text) - self._at > self._limit:
                raise Damaged(f"the element at byte {self.offset} does not end within {self._limit:,} characters")
            self._extend()

    def _advance(self, to: int) -> None:
        passed = self._text[self._at : to]
        self.offset += len(passed) if passed.isascii() else len(passed.encode("utf-8", "surrogateescape"))
        self._at = to

    def _extend(self) -> bool:
        """Read on: as much again as is held, so that a long element is tried a few times only."""
        if self._whole:
            return False
        self._text = self._text[self._at :]
        self._at = 0
        block = self._stream.read(max(BLOCK_BYTES, len(self._text)))
        self._whole = not block
        self._text += self._decode(block, final=self._whole)
        return True
