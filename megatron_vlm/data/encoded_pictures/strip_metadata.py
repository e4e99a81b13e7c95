"""Metadata out of encoded pictures: where and when a photograph was taken, by whom, on what, and its thumbnail; not the
pixels."""

from __future__ import annotations

from megatron_vlm.data.encoded_pictures import jpeg_segments, png_chunks, webp_chunks
from megatron_vlm.data.encoded_pictures.exif_orientation import minimal_exif
from megatron_vlm.data.encoded_pictures.jpeg_segments import APP0, APP1, APP2, APP14, APP15, COM, EXIF_PREFIX, SOS
from megatron_vlm.data.encoded_pictures.picture_header import PictureHeader, inspect
from megatron_vlm.data.encoded_pictures.unusable import UnusablePicture

#: ancillary chunks of a PNG that say how it looks, or that make it move; all others go (text, EXIF, time, private ones)
PNG_KEPT = frozenset(b"tRNS cHRM gAMA iCCP sBIT sRGB cICP mDCV mDCv cLLI cLLi bKGD pHYs acTL fcTL fdAT".split())
JFIF_PREFIX = b"JFIF\0"
JFIF_BYTES = 18  # the whole segment, where it has no thumbnail

WEBP_KEPT = frozenset({b"VP8 ", b"VP8L", b"VP8X", b"ICCP", b"ANIM", b"ANMF", b"ALPH"})


def strip_metadata(encoded: bytes) -> bytes:
    """The same picture without EXIF, XMP, IPTC, comments, text, thumbnails and private blocks; pixels are copied as they are
    encoded, not decoded. Colour profiles stay.

    A picture whose EXIF turns it (orientation 2 to 8) gets an EXIF block that says that and nothing else. What was appended
    behind the picture goes. Where there is nothing to take away, the result is `encoded` itself; so it is the second time.

    Raises:
        UnusablePicture: the structure of the file is damaged (as `find_structural_defect`, which this includes).
    """
    header = inspect(encoded)
    if not isinstance(header, PictureHeader):
        raise UnusablePicture(*header)
    stripped = {"jpeg": _strip_jpeg, "png": _strip_png, "webp": _strip_webp}[header.format](encoded, header.orientation)
    return encoded if stripped == encoded else stripped


def _strip_jpeg(encoded: bytes, orientation: int) -> bytes:
    parts = [encoded[:2]]
    exif = EXIF_PREFIX + minimal_exif(orientation)
    pending = b"" if orientation == 1 else bytes([0xFF, APP1]) + (len(exif) + 2).to_bytes(2, "big") + exif
    scan = -1  # where the scan at hand began
    for marker, start, stop in jpeg_segments.segments(encoded):
        if scan >= 0:
            parts.append(encoded[scan:start])
        scan = stop if marker == SOS else -1
        if marker != APP0:  # JFIF asks to be the first
            parts.append(pending)
            pending = b""
        if marker == APP0 and stop - start > JFIF_BYTES and encoded.startswith(JFIF_PREFIX, start + 4):
            parts.append(b"\xff\xe0\0\x10" + encoded[start + 4 : start + JFIF_BYTES - 2] + b"\0\0")  # without its thumbnail
        elif not _is_metadata(encoded, marker, start):
            parts.append(encoded[start:stop])
    return b"".join(parts)


def _is_metadata(encoded: bytes, marker: int, start: int) -> bool:
    """Everything that is for applications but: JFIF, the colour profile, and Adobe's mark of how colours are stored."""
    if marker == APP0:
        return not encoded.startswith(JFIF_PREFIX, start + 4)  # others hold thumbnails
    if marker == APP2:
        return not encoded.startswith(b"ICC_PROFILE\0", start + 4)
    if marker == APP14:
        return not encoded.startswith(b"Adobe", start + 4)
    return APP1 <= marker <= APP15 or marker == COM


def _strip_png(encoded: bytes, orientation: int) -> bytes:
    parts = [encoded[: len(png_chunks.SIGNATURE)]]
    for kind, start, stop in png_chunks.chunks(encoded):
        is_ancillary = kind[0] & 0x20
        if not is_ancillary or kind in PNG_KEPT:
            parts.append(encoded[start:stop])
        if kind == b"IHDR" and orientation != 1:
            parts.append(png_chunks.make_chunk(b"eXIf", minimal_exif(orientation)))
    return b"".join(parts)


def _strip_webp(encoded: bytes, orientation: int) -> bytes:
    parts: list[bytes] = []
    for kind, start, stop in webp_chunks.chunks(encoded):
        if kind not in WEBP_KEPT or (kind == b"VP8X" and start != 12):
            continue
        content = encoded[start + 8 : stop]
        if kind == b"VP8X":
            flags = content[0] & ~(webp_chunks.HAS_EXIF | webp_chunks.HAS_XMP)
            flags |= webp_chunks.HAS_EXIF if orientation != 1 else 0
            content = bytes([flags]) + content[1:]
        parts.append(webp_chunks.make_chunk(kind, content))
    if orientation != 1:
        parts.append(webp_chunks.make_chunk(b"EXIF", minimal_exif(orientation)))
    body = b"".join(parts)
    return b"RIFF" + (4 + len(body)).to_bytes(4, "little") + b"WEBP" + body
