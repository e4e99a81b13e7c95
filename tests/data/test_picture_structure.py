"""Whole pictures are never suspected, cut ones always found, and what only looks odd is left to a decoder."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from megatron_vlm.data.picture_structure import picture_defect, structure_defect

MakePicture = Callable[..., bytes]
FORMS = ("JPEG", "PNG", "WEBP")


@pytest.fixture(scope="module")
def noise() -> dict[str, bytes]:
    """A picture of noise in each form, with some kilobytes of metadata where that goes before the pixels."""
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50, 3), np.uint8))
    encoded = {}
    for form in FORMS:
        stream = io.BytesIO()
        options = {"progressive": True, "exif": b"Exif\0\0" + bytes(3000)} if form == "JPEG" else {}
        picture.save(stream, form, **options)
        encoded[form] = stream.getvalue()
    return encoded


@pytest.mark.parametrize("form", FORMS)
def test_whole_pictures(noise: dict[str, bytes], make_picture: MakePicture, form: str) -> None:
    for encoded in (noise[form], make_picture(form)):
        assert structure_defect(memoryview(encoded)) is None


@pytest.mark.parametrize("form", FORMS)
def test_pictures_cut_anywhere(noise: dict[str, bytes], form: str) -> None:
    encoded = noise[form]
    # a JPEG without its last bytes decodes to all but some pixels, which decoders let pass
    for size in range(0, len(encoded) - 20, 7):
        assert structure_defect(memoryview(encoded)[:size]), size
    for size in range(0, len(encoded) - 200, 211):
        assert picture_defect(memoryview(encoded)[:size]), size


def test_every_flipped_bit_of_a_png_is_suspected(make_picture: MakePicture) -> None:
    encoded = make_picture("PNG")
    for bit in range(8 * len(encoded)):
        changed = bytearray(encoded)
        changed[bit // 8] ^= 1 << bit % 8
        assert structure_defect(memoryview(changed)), bit


def test_a_flipped_bit_among_a_pngs_pixels_is_damage(noise: dict[str, bytes]) -> None:
    encoded = bytearray(noise["PNG"])
    encoded[-100] ^= 1
    assert picture_defect(memoryview(encoded)) == "its PNG has a chunk at byte 33 whose checksum is wrong"


def test_what_a_decoder_takes_is_no_defect(noise: dict[str, bytes]) -> None:
    """Bytes after the end, and fill before a marker, are common and harm nothing."""
    trailing = noise["JPEG"] + b"\0 some camera's own data"
    assert structure_defect(memoryview(trailing)) == "its JPEG ends without an end marker"
    assert picture_defect(memoryview(trailing)) is None
    filled = noise["JPEG"][:2] + b"\xff\xff\xff" + noise["JPEG"][2:]
    assert structure_defect(memoryview(filled)) is None
    assert structure_defect(memoryview(noise["WEBP"] + b"more")) is None


@pytest.mark.parametrize("content", [b"", b"\xff", b"\xff\xd8", b"GIF89a", b"\xff\xd8\xff\xd9", b"\xff\xd8\xff\xe0\0\1\0\0"])
def test_what_is_no_picture(content: bytes) -> None:
    assert picture_defect(memoryview(content))
