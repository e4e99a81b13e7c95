"""The chunks of a PNG file (ISO/IEC 15948), read without inflating."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple, TypeAlias

from megatron_vlm.data.encoded_pictures.exif_orientation import read_orientation
from megatron_vlm.data.encoded_pictures.unusable import undecodable

SIGNATURE = b"\x89PNG\r\n\x1a\n"

#: writers cut the data into chunks of 8 KiB or more, so this is far above what half a gigabyte needs
MOST_CHUNKS = 1 << 16

#: colour type -> bits a sample
DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}

_HEAD = struct.Struct(">I4s")
_HEADER = struct.Struct(">IIBBBBB")


#: (kind, start, stop): `encoded[start:stop]` is the chunk: length, kind, content and checksum
Chunk: TypeAlias = tuple[bytes, int, int]


class PngHeader(NamedTuple):
    """What a PNG file says of itself. `frames` is more than 1 for an animated one (APNG)."""

    height: int
    width: int
    frames: int
    orientation: int


def chunks(encoded: bytes) -> Iterator[Chunk]:
    """The chunks, up to IEND, which is the last. Checksums are not compared.

    Raises:
        UnusablePicture: the file ends before IEND.
    """
    position = len(SIGNATURE)
    end = len(encoded)
    for _ in range(MOST_CHUNKS):
        if position + 12 > end:
            raise undecodable(f"a PNG file that is cut short at byte {end}")
        length, kind = _HEAD.unpack_from(encoded, position)
        stop = position + 12 + length
        if stop > end:
            raise undecodable(
                f"a PNG file that is cut short or damaged: chunk {kind!r} at byte {position} of {length} bytes"
            )
        yield kind, position, stop
        if kind == b"IEND":
            return
        position = stop
    raise undecodable(f"a PNG file of more than {MOST_CHUNKS} chunks")


def read_png_header(encoded: bytes, checked: bool = False) -> PngHeader:
    """Walk all chunks (EXIF may stand at the end); with `checked`, compare their checksums, too.

    Raises:
        UnusablePicture: the header, a checksum or the order of chunks is wrong, or the file ends early.
    """
    height = width = 0
    frames = 1
    orientation = 0
    has_data = False
    view = memoryview(encoded)
    for kind, start, stop in chunks(encoded):
        if checked and zlib.crc32(view[start + 4 : stop - 4]) != int.from_bytes(view[stop - 4 : stop], "big"):
            raise undecodable(f"a PNG file that is damaged: the checksum of chunk {kind!r} at byte {start} is wrong")
        if start == len(SIGNATURE):
            height, width = _read_size(encoded, kind, start, stop)
        elif kind == b"IDAT":
            has_data = True
        elif kind == b"eXIf":
            orientation = orientation or read_orientation(view[start + 8 : stop - 4])
        elif kind == b"acTL" and not has_data and stop - start == 20:
            frames = max(1, int.from_bytes(view[start + 8 : start + 12], "big"))
    if not has_data:
        raise undecodable("a PNG file without pixels (no IDAT)")
    return PngHeader(height, width, frames, orientation or 1)


def _read_size(encoded: bytes, kind: bytes, start: int, stop: int) -> tuple[int, int]:
    if kind != b"IHDR" or stop - start != 25:
        raise undecodable(f"a PNG file that does not begin with its header, but with chunk {kind!r}")
    width, height, depth, colour, compression, row_filter, interlace = _HEADER.unpack_from(encoded, start + 8)
    if depth not in DEPTHS.get(colour, ()) or compression or row_filter or interlace > 1:
        raise undecodable(f"a PNG file of an unknown kind: colour type {colour}, {depth} bits, interlace {interlace}")
    return height, width


def make_chunk(kind: bytes, content: bytes) -> bytes:
    """A whole chunk: length, kind, content, checksum."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(content, zlib.crc32(kind)))
