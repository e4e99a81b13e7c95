"""Whether an encoded picture is whole, told from its framing alone: at the speed of memory rather than of a decoder.

A decoder forgives much that is no use to list, such as bytes after the end. So what looks wrong here is decoded, and only
what a decoder refuses too is called damaged. The checksums of a PNG's pixels decide alone: decoders do not look at them.
"""

from __future__ import annotations

import zlib

from megatron_vlm.data.picture_check import find_defect

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD8)})  # TEM, RST0 to RST7
_CERTAIN = "whose checksum is wrong"
_JPEG_END, _JPEG_SCAN = 0xD9, 0xDA


def picture_defect(encoded: memoryview) -> str | None:
    """What is wrong with a .jpg, .png or .webp file, or None."""
    suspicion = structure_defect(encoded)
    if suspicion is None or suspicion.endswith(_CERTAIN):
        return suspicion
    defect = find_defect(bytes(encoded))
    return None if defect is None else f"{suspicion} ({defect[1]})"


def structure_defect(encoded: memoryview) -> str | None:
    """What looks wrong with the framing of a picture, or None. Nothing is decoded; a PNG's own checksums are."""
    start = bytes(encoded[:12])
    if start[:2] == b"\xff\xd8":
        return _jpeg_defect(encoded)
    if start[:8] == _PNG:
        return _png_defect(encoded)
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        size = int.from_bytes(start[4:8], "little") + 8
        return None if size <= len(encoded) else f"it is a WebP of {size} bytes, and {len(encoded)} are there"
    return "it begins like no JPEG, PNG or WebP"


def _jpeg_defect(encoded: memoryview) -> str | None:
    at, size = 2, len(encoded)
    while True:
        if at + 4 > size:
            return "its JPEG ends before any pixels"
        if encoded[at] != 0xFF:
            return f"its JPEG has no marker at byte {at}"
        marker = encoded[at + 1]
        if marker == 0xFF:  # fill
            at += 1
        elif marker in _JPEG_WITHOUT_LENGTH:
            at += 2
        elif marker == _JPEG_END:
            return "its JPEG ends before any pixels"
        else:
            length = encoded[at + 2] << 8 | encoded[at + 3]
            if length < 2:
                return f"its JPEG has a segment of {length} bytes at byte {at}"
            at += 2 + length
            if marker == _JPEG_SCAN:
                break
    return None if at <= size and bytes(encoded[-2:]) == b"\xff\xd9" else "its JPEG ends without an end marker"


def _png_defect(encoded: memoryview) -> str | None:
    at, size = len(_PNG), len(encoded)
    while at + 12 <= size:
        length = int.from_bytes(encoded[at : at + 4], "big")
        end = at + 12 + length
        kind = bytes(encoded[at + 4 : at + 8])
        if end > size:
            break
        if zlib.crc32(encoded[at + 4 : end - 4]) != int.from_bytes(encoded[end - 4 : end], "big"):
            what = _CERTAIN if kind in (b"IHDR", b"PLTE", b"IDAT") else "that is damaged"
            return f"its PNG has a chunk at byte {at} {what}"
        if kind == b"IEND":
            return None
        at = end
    return "its PNG ends without an end chunk"
