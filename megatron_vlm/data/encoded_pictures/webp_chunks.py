"""The chunks of a WebP file (RFC 9649), read without decoding."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple, TypeAlias

from megatron_vlm.data.encoded_pictures.exif_orientation import read_orientation
from megatron_vlm.data.encoded_pictures.jpeg_segments import EXIF_PREFIX
from megatron_vlm.data.encoded_pictures.unusable import undecodable

#: animations have one chunk a frame
MOST_CHUNKS = 1 << 16

#: flags of VP8X
ANIMATED, HAS_XMP, HAS_EXIF = 0x02, 0x04, 0x08

_HEAD = struct.Struct("<4sI")


#: (kind, start, stop): `encoded[start:stop]` is the chunk: kind, length and content, without the byte that pads it to an
#: even length
Chunk: TypeAlias = tuple[bytes, int, int]


class WebpHeader(NamedTuple):
    """What a WebP file says of itself."""

    height: int
    width: int
    frames: int
    orientation: int


def chunks(encoded: bytes) -> Iterator[Chunk]:
    """The chunks in the RIFF container; what was appended behind it is not looked at.

    Raises:
        UnusablePicture: the file is shorter than its container says, or a chunk is longer than the container.
    """
    if len(encoded) < 20:
        raise undecodable(f"a WebP file that is cut short at byte {len(encoded)}")
    end = 8 + int.from_bytes(encoded[4:8], "little")
    if end > len(encoded):
        raise undecodable(f"a WebP file that is cut short: {len(encoded)} bytes of {end}")
    position = 12
    for _ in range(MOST_CHUNKS):
        if position + 8 > end:
            return
        kind, length = _HEAD.unpack_from(encoded, position)
        stop = position + 8 + length
        if stop > end:
            raise undecodable(f"a WebP file that is damaged: chunk {kind!r} at byte {position} of {length} bytes")
        yield kind, position, stop
        position = stop + (length & 1)
    raise undecodable(f"a WebP file of more than {MOST_CHUNKS} chunks")


def read_webp_header(encoded: bytes) -> WebpHeader:
    """Walk all chunks.

    Raises:
        UnusablePicture: as `chunks`; or there is no picture in the container, or it is not of the size that the container
        says.
    """
    canvas: tuple[int, int] | None = None
    picture: tuple[int, int] | None = None
    frames = 0
    animated = False
    orientation = 0
    for kind, start, stop in chunks(encoded):
        if kind == b"VP8 " or kind == b"VP8L":
            if picture is None:
                picture = (_lossy_size if kind == b"VP8 " else _lossless_size)(encoded, start + 8, stop)
            if canvas is None:
                break  # the simple format: nothing else counts
        elif kind == b"VP8X" and start == 12:
            if stop - start < 18:
                raise undecodable("a WebP file with a damaged header")
            animated = bool(encoded[20] & ANIMATED)
            canvas = 1 + int.from_bytes(encoded[27:30], "little"), 1 + int.from_bytes(encoded[24:27], "little")
        elif canvas is None:
            raise undecodable(f"a WebP file that does not begin with a picture, but with chunk {kind!r}")
        elif kind == b"ANMF":
            frames += 1
        elif kind == b"EXIF" and orientation == 0:
            orientation = read_orientation(exif_of(encoded, start, stop))
    if animated and canvas is not None and frames:
        return WebpHeader(*canvas, frames, orientation or 1)
    if animated or picture is None:
        raise undecodable("a WebP file without pixels")
    if canvas is not None and canvas != picture:
        raise undecodable(f"a WebP file that is damaged: {picture[1]}x{picture[0]} pixels on {canvas[1]}x{canvas[0]}")
    return WebpHeader(*picture, 1, orientation or 1)


def exif_of(encoded: bytes, start: int, stop: int) -> memoryview:
    """The TIFF block of an EXIF chunk; some writers put in front of it what JPEG has there."""
    return memoryview(encoded)[start + 8 + (len(EXIF_PREFIX) if encoded.startswith(EXIF_PREFIX, start + 8) else 0) : stop]


def _lossy_size(encoded: bytes, start: int, stop: int) -> tuple[int, int]:
    """A VP8 key frame (RFC 6386, 9.1): a tag of 3 bytes, a start code of 3, then 14 bits of width and of height."""
    if stop - start < 10 or encoded[start] & 1 or encoded[start + 3 : start + 6] != b"\x9d\x01\x2a":
        raise undecodable("a WebP file that is damaged: no VP8 key frame")
    if int.from_bytes(encoded[start : start + 3], "little") >> 5 > stop - start - 10:
        raise undecodable("a WebP file that is cut short: its first VP8 partition is longer than its chunk")
    width, height = struct.unpack_from("<HH", encoded, start + 6)
    return height & 0x3FFF, width & 0x3FFF


def _lossless_size(encoded: bytes, start: int, stop: int) -> tuple[int, int]:
    """VP8L: a signature, then 14 bits of width - 1, 14 of height - 1, one of alpha, three of version."""
    bits = int.from_bytes(encoded[start + 1 : start + 5], "little")
    if stop - start < 5 or encoded[start] != 0x2F or bits >> 29:
        raise undecodable("a WebP file that is damaged: no VP8L header")
    return 1 + (bits >> 14 & 0x3FFF), 1 + (bits & 0x3FFF)


def make_chunk(kind: bytes, content: bytes) -> bytes:
    """A whole chunk: kind, length, content, and a zero where its length is odd."""
    return _HEAD.pack(kind, len(content)) + content + b"\0" * (len(content) & 1)
