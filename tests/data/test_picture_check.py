"""Sound pictures pass; damaged, foreign and enormous ones have a reason."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable

import pytest

from megatron_vlm.data.encoded_pictures.picture_header import PictureHeader, find_structural_defect
from megatron_vlm.data.picture_check import check_picture, find_defect
from megatron_vlm.data.quarantine import Reason

MakePicture = Callable[..., bytes]


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_sound_pictures_pass_and_truncated_ones_do_not(make_picture: MakePicture, form: str) -> None:
    encoded = make_picture(form, width=65, height=33)
    assert find_defect(encoded) is None
    defect = find_defect(encoded[: len(encoded) * 2 // 3])
    assert defect is not None
    assert defect[0] is Reason.UNDECODABLE_IMAGE


def test_other_formats_are_not_pictures(make_picture: MakePicture) -> None:
    for encoded in (make_picture("BMP"), b"", b"<html>not found</html>"):
        assert find_defect(encoded) == (
            Reason.UNDECODABLE_IMAGE,
            "UnidentifiedImageError: not a JPEG, PNG or WebP file",
        )


@pytest.mark.parametrize("side", [14_000, 30_000])
def test_a_picture_that_would_fill_the_memory_is_not_decoded(side: int) -> None:
    """Some bytes of PNG can ask for gigabytes of pixels."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    encoded = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    defect = find_defect(encoded)
    assert defect is not None
    assert defect[0] is Reason.OVERSIZED_IMAGE


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("thorough", [False, True])
def test_checked_pictures_come_with_their_header(make_picture: MakePicture, form: str, thorough: bool) -> None:
    encoded = make_picture(form, width=65, height=33)
    assert check_picture(encoded, thorough) == PictureHeader(form.lower(), 33, 65)  # type: ignore[arg-type]
    cut = check_picture(encoded[:-30], thorough)
    assert cut == find_structural_defect(encoded[:-30])
    assert cut is not None
    assert check_picture(encoded, thorough, 65 * 33 - 1) == (Reason.OVERSIZED_IMAGE, "65x33 pixels, more than 2144")


def test_only_the_thorough_check_sees_damage_inside_of_the_pixels(make_picture: MakePicture) -> None:
    """A WebP whose first pixels are noise is whole, seen from outside."""
    encoded = make_picture("WEBP", width=200, height=150)
    damaged = encoded[:32] + b"\xff" * 9 + encoded[41:]
    assert isinstance(check_picture(damaged, thorough=False), PictureHeader)
    defect = check_picture(damaged, thorough=True)
    assert isinstance(defect, tuple)
    assert defect == find_defect(damaged)
    assert defect[0] is Reason.UNDECODABLE_IMAGE
