"""Text documents out of .txt files: each file is one, or several with a separator between them."""

from __future__ import annotations

from codecs import BOM_UTF8
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

from megatron_vlm.data.quarantine import Reason, Rejection
from megatron_vlm.data.records import Record, Text, Unit
from megatron_vlm.data.sources.decompression import Damaged
from megatron_vlm.data.sources.opening import open_decompressed
from megatron_vlm.data.sources.splitting import BLOCK_BYTES, LONGEST_PIECE, split_stream
from megatron_vlm.errors import ConfigError

#: one or more lines that hold nothing but white space
BLANK_LINES = "\n\n"


@dataclass(frozen=True, slots=True)
class PlainText:
    """Documents of .txt files in UTF-8, plain or compressed; a file is one unit.

    Attributes:
        separator: what is between two documents: `BLANK_LINES`; "\\n" for a document a line; any other text, exactly as it
            is in the file ("<|endoftext|>"). None: a file is a document. What is empty between two separators is none.
        limit: bytes of the longest document; a longer one is rejected.

    Raises:
        ConfigError: `separator` is empty.
    """

    separator: str | None = None
    limit: int = LONGEST_PIECE

    def __post_init__(self) -> None:
        if self.separator == "":
            raise ConfigError("separator is empty; give the text between documents, or none where a file is a document")

    def units(self, url: str, size: int, target: int) -> Sequence[Unit]:
        return [Unit(url, 0, 1, size)]

    def read(self, unit: Unit) -> Iterator[Record | Rejection]:
        number = offset = 0
        try:
            with open_decompressed(unit.url) as (stream, stored_bytes):
                for offset, content, passed_over in self._documents(stream):
                    bytes_read = min(stored_bytes(), unit.size)
                    if passed_over:
                        detail = f"a document of {passed_over:,} bytes or more; at most {self.limit:,} are read"
                        yield Rejection(unit.url, "", Reason.TOO_MANY_TOKENS, detail, offset, number, bytes_read)
                    elif content and not content.isspace():
                        yield self._document(unit, content, offset, number, bytes_read)
                    elif self.separator is None:
                        yield Rejection(unit.url, "", Reason.EMPTY_TEXT, "the file is empty", offset, number, bytes_read)
                    else:
                        continue
                    number += 1
        except Damaged as error:
            yield Rejection(unit.url, "", Reason.BROKEN_FILE, str(error), offset, number, unit.size)

    def _documents(self, stream: BinaryIO) -> Iterator[tuple[int, bytes, int]]:
        """(offset, content, bytes of a document that is too long to be read)."""
        if self.separator is None:
            yield from _whole(stream, self.limit)
        elif self.separator == BLANK_LINES:
            yield from _paragraphs(stream, self.limit)
        else:
            separator = self.separator.encode()
            for offset, pieces, passed_over in split_stream(stream, separator, limit=self.limit):
                if passed_over:
                    yield offset, b"", passed_over
                for piece in pieces:
                    yield offset, piece.removesuffix(b"\r") if separator == b"\n" else piece, 0
                    offset += len(piece) + len(separator)

    def _document(self, unit: Unit, content: bytes, offset: int, number: int, bytes_read: int) -> Record | Rejection:
        try:
            text = (content.removeprefix(BOM_UTF8) if offset == 0 else content).decode()
        except UnicodeDecodeError as error:
            return Rejection(unit.url, "", Reason.INVALID_UNICODE, str(error), offset, number, bytes_read)
        if not text or text.isspace():
            return Rejection(unit.url, "", Reason.EMPTY_TEXT, "nothing but white space", offset, number, bytes_read)
        return Record("", offset, ((Text(text),),), bytes_read, number)


def _whole(stream: BinaryIO, limit: int) -> Iterator[tuple[int, bytes, int]]:
    parts: list[bytes] = []
    size = 0
    while block := stream.read(BLOCK_BYTES):
        size += len(block)
        if size <= limit:
            parts.append(block)
        else:
            parts.clear()
    yield (0, b"", size) if size > limit else (0, b"".join(parts), 0)


def _paragraphs(stream: BinaryIO, limit: int) -> Iterator[tuple[int, bytes, int]]:
    begin = size = 0  # of the paragraph at hand, newlines included
    lines: list[bytes] = []
    for offset, pieces, passed_over in split_stream(stream, limit=limit):
        if passed_over:
            begin, size = (begin, size) if size else (offset, 0)
            size += passed_over + 1
            lines.clear()
        for line in pieces:
            if line and not line.isspace():
                if not size:
                    begin = offset
                size += len(line) + 1
                if size - 1 <= limit:
                    lines.append(line.removesuffix(b"\r"))
                else:
                    lines.clear()
            elif size:
                yield (begin, b"", size) if size - 1 > limit else (begin, b"\n".join(lines), 0)
                lines, size = [], 0
            offset += len(line) + 1
    if size:
        yield (begin, b"", size) if size - 1 > limit else (begin, b"\n".join(lines), 0)
