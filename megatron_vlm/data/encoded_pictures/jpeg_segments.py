"""The segments of a JPEG file (ITU-T T.81, annex B), read without decoding."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from typing import NamedTuple, TypeAlias

from megatron_vlm.data.encoded_pictures.exif_orientation import read_orientation
from megatron_vlm.data.encoded_pictures.unusable import UnusablePicture, undecodable

SOI, EOI, SOS, COM = 0xD8, 0xD9, 0xDA, 0xFE
APP0, APP1, APP2, APP14, APP15 = 0xE0, 0xE1, 0xE2, 0xEE, 0xEF
EXIF_PREFIX = b"Exif\0\0"

#: start of frame: baseline, extended, progressive, lossless, and the arithmetic ones that libjpeg-turbo decodes
FRAMES = frozenset({0xC0, 0xC1, 0xC2, 0xC3, 0xC9, 0xCA})
OTHER_FRAMES = frozenset({0xC5, 0xC6, 0xC7, 0xCB, 0xCD, 0xCE, 0xCF})

#: FRAMES, OTHER_FRAMES, DHT, DAC, SOS, DQT, DNL, DRI, EXP, APPn, COM: markers that a length follows
SEGMENTS = frozenset({*range(0xC0, 0xD0), *range(0xDA, 0xE0), *range(0xE0, 0xF0), COM}) - {0xC8, 0xDE}

#: a marker that ends entropy-coded data, in which 0xFF is always followed by 0 or is a restart marker. "\xff+" would
#: take quadratic time on a run of fill bytes, and is not needed: the last of them is the one that is found.
NEXT_MARKER = re.compile(rb"\xff[\x02-\xcf\xd8-\xfe]")

#: real files have less than a thousand; a file of nothing but empty comments shall not take long
MOST_SEGMENTS = 10_000

_HEAD = struct.Struct(">BBH")
_FRAME = struct.Struct(">BHHB")  # precision, height, width, components


#: (marker, start, stop): `encoded[start:stop]` is the segment, 0xFF and marker included; for SOS without the scan that
#: follows
Segment: TypeAlias = tuple[int, int, int]


class Frame(NamedTuple):
    """What the header of a JPEG says."""

    height: int
    width: int
    orientation: int


def segments(encoded: bytes) -> Iterator[Segment]:
    """The segments after SOI up to EOI, which is the last. What lies between two of them is a scan (after SOS), or bytes
    that decoders pass over.

    Raises:
        UnusablePicture: the file ends before EOI, or has a marker that no decoder knows.
    """
    position = 2
    end = len(encoded)
    for _ in range(MOST_SEGMENTS):
        try:
            lead, marker, size = _HEAD.unpack_from(encoded, position)
        except struct.error:
            lead = marker = size = 0
        if lead != 0xFF or marker not in SEGMENTS:  # a scan, EOI, fill bytes, or damage
            match = NEXT_MARKER.search(encoded, position)
            if match is None:
                raise undecodable(f"a JPEG file that is cut short: no end after byte {position}")
            position = match.start()
            marker = encoded[position + 1]
            if marker == EOI:
                yield EOI, position, position + 2
                return
            if marker not in SEGMENTS:
                raise undecodable(f"a JPEG file that is damaged: marker {marker:#04x} at byte {position}")
            if position + 4 > end:
                raise undecodable(f"a JPEG file that is cut short at byte {end}")
            size = encoded[position + 2] << 8 | encoded[position + 3]
        stop = position + 2 + size
        if size < 2 or stop > end:
            raise undecodable(
                f"a JPEG file that is cut short or damaged: segment {marker:#04x} at byte {position} of {size} bytes"
            )
        yield marker, position, stop
        position = stop
    raise undecodable(f"a JPEG file of more than {MOST_SEGMENTS} segments")


def read_frame(encoded: bytes) -> Frame:
    """Read up to the first scan.

    Raises:
        UnusablePicture: there is no scan, or Pillow cannot decode such a one.
    """
    size: tuple[int, int] | None = None
    orientation = 0
    for marker, start, stop in segments(encoded):
        if marker in FRAMES:
            if size is not None:
                raise undecodable("a JPEG file with two frame headers")
            size = _read_size(encoded, start, stop)
        elif marker == APP1:
            if orientation == 0 and encoded.startswith(EXIF_PREFIX, start + 4):
                orientation = read_orientation(memoryview(encoded)[start + 10 : stop])
        elif marker == SOS:
            if size is None:
                break
            return Frame(*size, orientation or 1)
        elif marker in OTHER_FRAMES:
            raise undecodable(f"a JPEG file of a kind that is not read: frame {marker:#04x} (hierarchical or lossless)")
    raise undecodable("a JPEG file without a frame header before its first scan")


def colour_components(encoded: bytes) -> int:
    """1 for grey, 3 for colours, 4 for those of print; 0 where there is no frame header before the first scan. Never
    raises."""
    try:
        for marker, start, stop in segments(encoded):
            if marker in FRAMES and stop - start >= 10:
                return encoded[start + 9]
            if marker == SOS:
                break
    except UnusablePicture:
        pass
    return 0


def _read_size(encoded: bytes, start: int, stop: int) -> tuple[int, int]:
    if stop - start < 10:
        raise undecodable("a JPEG file with a damaged frame header")
    precision, height, width, components = _FRAME.unpack_from(encoded, start + 4)
    if precision != 8:
        raise undecodable(f"a JPEG file of {precision} bits a sample; 8 are read")
    if components not in (1, 3, 4) or stop - start != 10 + 3 * components:
        raise undecodable(f"a JPEG file with a damaged frame header: {components} components in {stop - start - 4} bytes")
    return height, width


def require_end(encoded: bytes) -> None:
    """Walk through all scans to EOI. What a phone or a server has appended comes after it, and is not looked at.

    Raises:
        UnusablePicture: as `segments`.
    """
    for _ in segments(encoded):
        pass
