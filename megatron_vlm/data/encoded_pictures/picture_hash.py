"""Two names for a picture: one for its bytes, one for how it looks. Both find pictures that a dataset has twice."""

from __future__ import annotations

import hashlib

from megatron_vlm.data.encoded_pictures import decoded
from megatron_vlm.data.encoded_pictures.picture_header import PictureHeader, inspect
from megatron_vlm.data.encoded_pictures.unusable import UnusablePicture

KEY_BYTES = 16

#: a JPEG is decoded at an eighth as long as that leaves eight pixels a side for each of the nine by eight: with four, more
#: bits differ from those of the whole picture, and it takes hardly less time
LEAST = (72, 72)


def sha256_key(encoded: bytes) -> bytes:
    """The first 16 bytes of SHA-256: equal for equal bytes; for others, one chance in 2**65 among a billion pictures."""
    return hashlib.sha256(encoded).digest()[:KEY_BYTES]


def difference_hash(encoded: bytes) -> int:
    """64 bits of how a picture looks: dHash, by Neal Krawetz ("Kind of Like That", hackerfactor.com, 2013).

    The picture, upright and grey, is shrunk to nine by eight; each bit says whether a pixel is darker than the one to its
    right, rows from the top, the first bit the highest. Copies that were compressed again or resized have the same value, or
    one that differs in few bits (`hamming`); up to 10 is the author's rule of thumb. Pictures without contrast (a blank
    page) differ by chance, and are all alike at 0 where they have one colour. A flipped, turned or cropped copy is another
    picture.

    Raises:
        UnusablePicture: it does not decode.
    """
    header = inspect(encoded)
    if not isinstance(header, PictureHeader):
        raise UnusablePicture(*header)
    with decoded.refusing_by_name():
        return _hash_of(encoded, header.orientation)


def hamming(first: int, second: int) -> int:
    """How many bits of two hashes differ."""
    return (first ^ second).bit_count()


def _hash_of(encoded: bytes, orientation: int) -> int:
    from PIL import Image

    picture = decoded.lay_on_white(decoded.open_first_frame(encoded, "L", LEAST)).convert("L")
    size = (8, 9) if orientation >= 5 else (9, 8)  # as it is stored
    small = decoded.set_upright(picture.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0), orientation)
    pixels = small.tobytes()
    value = 0
    for row in range(0, 72, 9):
        for left in range(row, row + 8):
            value = value << 1 | (pixels[left] < pixels[left + 1])
    return value
