"""Lines of plain, gzip and zstandard files, with damage reported instead of read as an early end."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

CHUNK = 1 << 18
LARGEST_ZSTD_WINDOW = 1 << 31  # what `zstd --long=31` writes

#: what reading a damaged file raises
DAMAGE: tuple[type[Exception], ...] = (OSError, EOFError, zlib.error)


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield (bytes of the file read so far, line without its newline) for a .gz, .zst or any other (plain)
    file.

    Raises one of `DAMAGE` when the compressed data is corrupt or ends early.
    """
    with open(path, "rb") as raw:
        stream: Any
        if path.suffix == ".gz":
            stream = gzip.GzipFile(fileobj=raw)
        elif path.suffix == ".zst":
            stream = io.BufferedReader(_ZstdFrames(raw), CHUNK)
        else:
            stream = raw
        for line in stream:
            yield raw.tell(), line.rstrip(b"\r\n")


class _ZstdFrames(io.RawIOBase):
    """Decompresses all frames of a file. The library's own reader takes a truncated file for a short one."""

    def __init__(self, raw: BinaryIO) -> None:
        import zstandard

        self._raw = raw
        self._error = zstandard.ZstdError
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=LARGEST_ZSTD_WINDOW)
        self._frame = self._decompressor.decompressobj()
        self._inside_frame = False
        self._pending = memoryview(b"")  # decompressed, not yet handed out

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._pending:
            if not self._fill():
                return 0
        count = min(len(buffer), len(self._pending))
        buffer[:count] = self._pending[:count]
        self._pending = self._pending[count:]
        return count

    def _fill(self) -> bool:
        chunk = self._raw.read(CHUNK // 8)
        if not chunk:
            if self._inside_frame:
                raise EOFError("the file ends inside a zstandard frame")
            return False
        parts = []
        try:
            while chunk:
                self._inside_frame = True
                parts.append(self._frame.decompress(chunk))
                chunk = b""
                if self._frame.eof:
                    chunk = self._frame.unused_data
                    self._frame = self._decompressor.decompressobj()
                    self._inside_frame = False
        except self._error as error:
            raise OSError(str(error)) from error
        self._pending = memoryview(b"".join(parts))
        return True
