"""Compressed files as streams, with damage reported instead of read as an early end."""

from __future__ import annotations

import bz2
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from megatron_vlm.data.sources.file_names import base_name
from megatron_vlm.errors import DataError

BUFFER_BYTES = 1 << 20
LARGEST_ZSTD_WINDOW = 1 << 31  # what `zstd --long=31` writes
LARGEST_XZ_MEMORY = 1 << 30  # `xz -9` needs 65 MiB to decompress
LARGEST_OUTPUT = 1 << 24  # of one call to bzip2 or xz


class Damaged(Exception):
    """The rest of a file cannot be read: it is corrupt, or ends before it should. Says what was seen."""


@dataclass(frozen=True, slots=True)
class _Codec:
    """A compression.

    Attributes:
        name: for errors.
        new: makes what decompresses one frame: it has decompress(), eof and unused_data.
        piece: bytes that it is fed at once; small where a few bytes may blow up to megabytes.
        bounded: decompress() takes a largest size, and needs_input tells when it has given everything.
        padded: zeros may follow a frame.
    """

    name: str
    new: Callable[[], Any]
    piece: int
    bounded: bool = False
    padded: bool = False


def _zstd() -> Any:
    import zstandard

    return zstandard.ZstdDecompressor(max_window_size=LARGEST_ZSTD_WINDOW).decompressobj()


_GZIP = _Codec("gzip", lambda: zlib.decompressobj(wbits=31), 1 << 16, padded=True)
_ZSTD = _Codec("zstandard", _zstd, 1 << 13)  # 4 bytes can stand for 128 KiB, so these for 256 MiB
_BZIP2 = _Codec("bzip2", bz2.BZ2Decompressor, 1 << 16, bounded=True)
_XZ = _Codec("xz", lambda: lzma.LZMADecompressor(memlimit=LARGEST_XZ_MEMORY), 1 << 16, bounded=True, padded=True)

_CODECS = {
    ".gz": _GZIP,
    ".tgz": _GZIP,
    ".zst": _ZSTD,
    ".tzst": _ZSTD,
    ".bz2": _BZIP2,
    ".tbz2": _BZIP2,
    ".xz": _XZ,
    ".txz": _XZ,
}
_TARS = {".tgz", ".tzst", ".tbz2", ".txz"}
_UNKNOWN = {".7z", ".br", ".lz", ".lz4", ".lzo", ".rar", ".sz", ".z", ".zip"}


def split_compression(url: str) -> tuple[str, str]:
    """The file name without the suffix of a compression, and that suffix: ("a.jsonl", ".gz"), ("a.tar", ".tgz"),
    ("a.txt", ""); in lower case.

    Raises DataError for a compression that is not read.
    """
    name = base_name(url).lower()
    stem, dot, last = name.rpartition(".")
    suffix = dot + last
    if stem and suffix in _UNKNOWN:
        raise DataError(
            f"{url}: {suffix} files are not read; unpack it, or compress it with one of these instead: .gz .zst .bz2 .xz"
        )
    if not stem or suffix not in _CODECS:
        return name, ""
    return stem + (".tar" if suffix in _TARS else ""), suffix


def decompressed(stream: io.BufferedReader, url: str) -> io.BufferedReader:
    """What `stream` holds, decompressed as the name of its `url` asks; `stream` itself where it asks for nothing.

    All frames of a file are read, as parallel compressors and `cat` write them. Reading raises `Damaged` where the data
    is corrupt or ends early, after everything before that has been read.

    Raises DataError for a compression that is not read (.lz4, .br, .7z, .zip, .rar).
    """
    suffix = split_compression(url)[1]
    if not suffix:
        return stream
    return io.BufferedReader(_Chunks(_inflate(stream, _CODECS[suffix])), BUFFER_BYTES)


def _inflate(raw: io.BufferedReader, codec: _Codec) -> Iterator[bytes]:
    frame: Any = None
    begun = False
    while piece := raw.read(codec.piece):
        while piece:
            if frame is None:
                if codec.padded and begun and not (piece := piece.lstrip(b"\0")):
                    break
                frame, begun = codec.new(), True
            yield from _expand(frame, piece, codec)
            piece = frame.unused_data if frame.eof else b""
            frame = None if frame.eof else frame
    if frame is not None:
        raise Damaged(f"the file ends inside a {codec.name} frame")
    if not begun:
        raise Damaged(f"the file is empty, which no {codec.name} file is")


def _expand(frame: Any, piece: bytes, codec: _Codec) -> Iterator[bytes]:
    try:
        if not codec.bounded:
            yield frame.decompress(piece)
            return
        yield frame.decompress(piece, LARGEST_OUTPUT)
        while not (frame.eof or frame.needs_input):
            yield frame.decompress(b"", LARGEST_OUTPUT)
    except _errors() as error:
        raise Damaged(f"{codec.name}: {error}") from error


def _errors() -> tuple[type[Exception], ...]:
    import zstandard

    return (zlib.error, OSError, EOFError, lzma.LZMAError, zstandard.ZstdError)


class _Chunks(io.RawIOBase):
    """Chunks of bytes as a stream. A read gives as much as there is before it lets an error through."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._pending = memoryview(b"")  # given by `chunks`, not yet handed out
        self._damage: Damaged | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        filled = 0
        while filled < len(buffer):
            if not self._pending and not self._fill():
                break
            count = min(len(buffer) - filled, len(self._pending))
            buffer[filled : filled + count] = self._pending[:count]
            self._pending = self._pending[count:]
            filled += count
        if self._damage is not None and not filled:
            raise self._damage
        return filled

    def _fill(self) -> bool:
        if self._damage is not None:
            return False
        try:
            for chunk in self._chunks:
                if chunk:
                    self._pending = memoryview(chunk)
                    return True
        except Damaged as error:
            self._damage = error
        return False
