"""Metadata goes, pixels stay: before and after are compared by Pillow, which did not write the one nor the other."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps, ImageSequence

from megatron_vlm.data.encoded_pictures.picture_header import find_structural_defect, read_header
from megatron_vlm.data.encoded_pictures.strip_metadata import strip_metadata
from megatron_vlm.data.encoded_pictures.unusable import UnusablePicture
from megatron_vlm.data.picture_check import find_defect
from megatron_vlm.data.quarantine import Reason
from tests.data.encoded_pictures.samples import COMMENT, GPS_TEXT, encode, exif, pixels, png_texts, samples, srgb_profile

NAMES = sorted(samples())


def frames(encoded: bytes) -> list[np.ndarray]:
    with Image.open(io.BytesIO(encoded)) as picture:
        return [np.asarray(frame.convert("RGBA")) for frame in ImageSequence.Iterator(picture)]


@pytest.mark.parametrize("name", NAMES)
def test_pixels_are_those_of_before(name: str) -> None:
    encoded = samples()[name]
    stripped = strip_metadata(encoded)
    assert strip_metadata(stripped) is stripped
    assert find_structural_defect(stripped) is None
    assert find_defect(stripped) is None
    assert read_header(stripped) == read_header(encoded)
    before, after = frames(encoded), frames(stripped)
    assert len(before) == len(after)
    for left, right in zip(before, after, strict=True):
        np.testing.assert_array_equal(left, right)
    if "exif" not in name:
        assert stripped is encoded


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_nothing_but_the_orientation_is_left(form: str, orientation: int) -> None:
    options: dict[str, object] = {"comment": COMMENT, "pnginfo": png_texts(), "xmp": b"<x>" + COMMENT}
    options = {
        key: value
        for key, value in options.items()
        if key in {"JPEG": ("comment", "xmp"), "PNG": ("pnginfo",), "WEBP": ("xmp",)}[form]
    }
    encoded = encode(pixels(), form, exif=exif(orientation), icc_profile=srgb_profile(), **options)
    assert COMMENT in encoded
    assert GPS_TEXT in encoded
    stripped = strip_metadata(encoded)
    assert COMMENT not in stripped
    assert GPS_TEXT not in stripped
    if form == "WEBP":  # flags of VP8X: profile, EXIF, XMP
        assert encoded[20] & 0x2C == 0x2C
        assert stripped[20] & 0x2C == (0x28 if orientation > 1 else 0x20)
        assert int.from_bytes(stripped[4:8], "little") == len(stripped) - 8
    with Image.open(io.BytesIO(encoded)) as before, Image.open(io.BytesIO(stripped)) as after:
        assert dict(after.getexif()) == ({0x0112: orientation} if orientation > 1 else {})
        assert after.info["icc_profile"] == srgb_profile()
        known = {"icc_profile", "exif", "loop", "background", "timestamp", "duration"}
        assert set(after.info) - known <= {"jfif", "jfif_version", "jfif_unit", "jfif_density", "dpi"}
        shown = [np.asarray(ImageOps.exif_transpose(picture)) for picture in (before, after)]
    np.testing.assert_array_equal(*shown)


def segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def test_every_application_segment_of_a_jpeg_but_three() -> None:
    plain = samples()["jpeg profile"]
    extra = b"".join(segment(marker, COMMENT) for marker in (*range(0xE0, 0xF0), 0xFE))
    behind_jfif = plain[:20] + extra + plain[20:]
    assert find_defect(behind_jfif) is None
    assert strip_metadata(behind_jfif) == plain


def test_adobes_mark_stays_for_it_says_how_colours_are_stored() -> None:
    encoded = samples()["jpeg print"]
    assert b"\xff\xee\0\x0eAdobe" in encoded
    assert strip_metadata(encoded) is encoded


def test_a_thumbnail_in_the_first_segment() -> None:
    plain = samples()["jpeg"]
    assert plain[2:6] == b"\xff\xe0\0\x10"
    jfif = segment(0xE0, plain[6:18] + b"\2\1" + b"abcdef")
    encoded = plain[:2] + jfif + plain[20:]
    assert find_defect(encoded) is None
    assert strip_metadata(encoded) == plain


def test_what_was_appended_goes() -> None:
    """Phones append a film, and photographs of more than one picture have the others' metadata there."""
    for name in NAMES:
        encoded = strip_metadata(samples()[name])
        assert strip_metadata(encoded + samples()["jpeg exif"]) == encoded


def test_segments_between_the_scans_of_a_progressive_jpeg() -> None:
    plain = samples()["jpeg progressive"]
    second = plain.index(b"\xff\xda", plain.index(b"\xff\xda") + 2)
    second = plain.rindex(b"\xff\xc4", 0, second)
    encoded = plain[:second] + segment(0xFE, COMMENT) + plain[second:]
    assert find_defect(encoded) is None
    assert strip_metadata(encoded) == plain


def test_damage_is_an_error_by_name() -> None:
    with pytest.raises(UnusablePicture, match="undecodable_image: a JPEG file that is cut short") as caught:
        strip_metadata(samples()["jpeg"][:-40])
    assert caught.value.defect[0] is Reason.UNDECODABLE_IMAGE


@given(
    st.sampled_from(NAMES),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), max_size=4),
    st.binary(max_size=40),
)
def test_no_damage_ends_in_another_error(name: str, changes: list[tuple[float, int]], tail: bytes) -> None:
    damaged = bytearray(samples()[name] + tail)
    for place, change in changes:
        damaged[int(place * len(damaged))] ^= change
    try:
        stripped = strip_metadata(bytes(damaged))
    except UnusablePicture:
        return
    assert strip_metadata(stripped) is stripped
    assert read_header(stripped) == read_header(bytes(damaged))
