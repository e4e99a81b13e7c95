"""Headers say what Pillow says; structure passes what is whole, and nothing that is cut short; garbage never raises."""

from __future__ import annotations

import io
import struct
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from megatron_vlm.data.encoded_pictures.picture_header import (
    MAX_PIXELS,
    PictureHeader,
    find_structural_defect,
    inspect,
    read_header,
)
from megatron_vlm.data.picture_check import find_defect
from megatron_vlm.data.quarantine import Reason
from tests.data.encoded_pictures.samples import encode, exif, pixels, png_chunk, samples

NAMES = sorted(samples())


@pytest.mark.parametrize("name", NAMES)
def test_headers_say_what_pillow_says(name: str) -> None:
    encoded = samples()[name]
    with Image.open(io.BytesIO(encoded)) as picture:
        seen = PictureHeader(
            picture.format.lower(),  # type: ignore[union-attr, arg-type]
            picture.height,
            picture.width,
            getattr(picture, "n_frames", 1),
            picture.getexif().get(0x0112, 1),
        )
    assert read_header(encoded) == seen
    assert inspect(encoded) == seen
    assert find_structural_defect(encoded) is None
    assert seen.animated == ("animated" in name)


@settings(max_examples=60)
@given(
    st.sampled_from(["JPEG", "PNG", "WEBP", "lossless"]),
    st.integers(1, 700),
    st.integers(1, 700),
    st.sampled_from(["L", "RGB", "CMYK", "RGBA", "P", "1"]),
    st.one_of(st.none(), st.integers(1, 8)),
    st.booleans(),
)
def test_any_size_mode_and_orientation(form: str, width: int, height: int, mode: str, turn: int | None, odd: bool) -> None:
    options: dict[str, object] = {"exif": exif(turn, telling=odd)} if turn else {}
    if form == "lossless":
        form, options["lossless"] = "WEBP", True
    if (form, mode) in {("PNG", "CMYK"), ("JPEG", "RGBA"), ("JPEG", "P")}:
        mode = "RGB"
    if form == "JPEG":
        options["progressive"] = odd
    encoded = encode(Image.new(mode, (width, height), 1), form, **options)
    header = inspect(encoded)
    assert header == PictureHeader(header.format, height, width, 1, turn or 1)  # type: ignore[union-attr]
    assert header.shown_size == ((width, height) if turn and turn > 4 else (height, width))  # type: ignore[union-attr]


@pytest.mark.parametrize("name", NAMES)
def test_no_truncation_passes(name: str) -> None:
    """Pillow refuses all of them but PNGs that end behind the last pixel: what is passed here and refused there is none."""
    encoded = samples()[name]
    passed = [length for length in range(len(encoded)) if find_structural_defect(encoded[:length]) is None]
    assert passed == []


@pytest.mark.parametrize("name", ["jpeg", "jpeg progressive", "jpeg print", "png interlaced", "webp", "webp lossless alpha"])
def test_what_pillow_refuses_of_truncations(name: str) -> None:
    """How far the cheap check may be trusted is not for us alone to say."""
    encoded = samples()[name]
    lengths = [*range(0, len(encoded) - 24, 7), *range(len(encoded) - 24, len(encoded))]
    decoded = [length - len(encoded) for length in lengths if find_defect(encoded[:length]) is None]
    # Pillow does without a PNG's last chunk and its data's checksums, and without the end marker of some JPEGs
    assert all(length >= {"jpeg print": -2, "png interlaced": -24}.get(name, 0) for length in decoded), decoded


@pytest.mark.parametrize("name", ["jpeg", "jpeg progressive", "jpeg exif", "png", "webp", "webp exif", "webp animated"])
@pytest.mark.parametrize("tail", [b"\0", b"\r\n", b"\0" * 5000, b"<!-- cached -->", samples()["jpeg"], b"\xff" * 300])
def test_what_is_appended_is_no_defect(name: str, tail: bytes) -> None:
    encoded = samples()[name]
    assert find_structural_defect(encoded + tail) is None
    assert find_defect(encoded + tail) is None
    assert read_header(encoded + tail) == read_header(encoded)


def test_a_jpeg_cut_short_is_not_saved_by_what_follows() -> None:
    """Downloads that were continued wrongly are filled with zeros to their length; a thumbnail has an end of its own."""
    thumbnail = samples()["jpeg"]
    whole = encode(pixels(), "JPEG", exif=b"Exif\0\0" + thumbnail)
    for length in range(2, len(whole) - 1, 5):
        assert find_structural_defect(whole[:length] + bytes(len(whole) - length)) is not None


@pytest.mark.parametrize(
    ("encoded", "detail"),
    [
        (b"", "an empty file"),
        (bytes(5000), "a file of zeros"),
        (b"<!DOCTYPE html><html>not found</html>", "an HTML or XML file"),
        (b'\xef\xbb\xbf\n<?xml version="1.0"?><svg xmlns="x">', "an SVG file"),
        (encode(pixels(), "GIF"), "a GIF file"),
        (encode(pixels(), "BMP"), "a BMP file"),
        (encode(pixels(), "TIFF"), "a TIFF file"),
        (encode(pixels(), "AVIF"), "an AVIF file"),
        (encode(pixels(), "JPEG2000"), "a JPEG 2000 file"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "a HEIC file"),
        (b"not found", "no picture that is known"),
    ],
)
def test_other_files_are_named(encoded: bytes, detail: str) -> None:
    assert find_structural_defect(encoded) == (Reason.UNDECODABLE_IMAGE, f"{detail}; JPEG, PNG and WebP are read")
    assert read_header(encoded) is None


def patched(encoded: bytes, at: int, value: bytes) -> bytes:
    return encoded[:at] + value + encoded[at + len(value) :]


def with_size(name: str, width: int, height: int) -> bytes:
    """A sample that claims another size."""
    encoded = samples()[name]
    if name.startswith("jpeg"):
        return patched(encoded, encoded.index(b"\xff\xc0") + 5, struct.pack(">HH", height, width))
    if name.startswith("png"):
        content = struct.pack(">II", width, height) + encoded[24:29]
        return patched(encoded, 8, png_chunk(b"IHDR", content))
    return patched(encoded, 26, struct.pack("<HH", width, height))


@pytest.mark.parametrize(("name", "side"), [("jpeg", 60_000), ("png", 2**31 - 1), ("png", 14_000), ("webp", 16_383)])
def test_a_picture_that_would_fill_the_memory(name: str, side: int) -> None:
    encoded = with_size(name, side, side)
    assert find_structural_defect(encoded) == (
        Reason.OVERSIZED_IMAGE,
        f"{side}x{side} pixels, more than {MAX_PIXELS}",
    )
    assert find_defect(encoded)[0] is Reason.OVERSIZED_IMAGE  # type: ignore[index]
    assert find_structural_defect(encoded, side * side) is None


def test_the_limit_is_pillows_and_inclusive() -> None:
    assert Image.MAX_IMAGE_PIXELS is not None
    assert MAX_PIXELS == 2 * Image.MAX_IMAGE_PIXELS
    encoded = samples()["jpeg"]
    assert find_structural_defect(encoded, 40 * 24) is None
    assert find_structural_defect(encoded, 40 * 24 - 1) is not None


@pytest.mark.parametrize("name", ["jpeg", "png", "webp"])
@pytest.mark.parametrize(("width", "height"), [(0, 24), (40, 0), (0, 0)])
def test_pictures_without_pixels(name: str, width: int, height: int) -> None:
    encoded = with_size(name, width, height)
    assert find_structural_defect(encoded) == (Reason.UNDECODABLE_IMAGE, f"{width}x{height} pixels")
    assert find_defect(encoded) is not None


def test_every_changed_byte_of_a_png_is_found() -> None:
    encoded = samples()["png interlaced"]
    rng = np.random.default_rng(0)
    for at in range(len(encoded)):
        damaged = patched(encoded, at, bytes([encoded[at] ^ int(rng.integers(1, 256))]))
        assert find_structural_defect(damaged) is not None, at


def test_jpegs_that_pillow_has_no_decoder_for() -> None:
    encoded = samples()["jpeg"]
    frame = encoded.index(b"\xff\xc0")
    for damaged, detail in (
        (patched(encoded, frame + 4, b"\x0c"), "12 bits a sample"),
        (patched(encoded, frame + 1, b"\xc5"), "frame 0xc5"),
        (patched(encoded, frame + 9, b"\x02"), "2 components"),
        (patched(encoded, frame + 1, b"\xef"), "without a frame header"),
        (encoded[:frame] + encoded[frame : frame + 19] + encoded[frame:], "two frame headers"),
    ):
        defect = find_structural_defect(damaged)
        assert defect is not None
        assert detail in defect[1]
        assert find_defect(damaged) is not None


def test_mutations_never_raise_and_rarely_refuse_what_pillow_decodes() -> None:
    """Of JPEG and WebP nearly none. (A PNG is refused for any change, of which Pillow overlooks some.)"""
    rng = np.random.default_rng(0)
    strict = decoded = caught = 0
    for name in NAMES:
        encoded = samples()[name]
        for _ in range(60):
            damaged = bytearray(encoded)
            for _ in range(rng.integers(1, 5)):
                kind, at = rng.integers(3), int(rng.integers(len(damaged)))
                if kind == 0:
                    damaged[at] ^= int(rng.integers(1, 256))
                elif kind == 1:
                    del damaged[at : at + int(rng.integers(1, 9))]
                else:
                    damaged[at:at] = rng.bytes(int(rng.integers(1, 9)))
            header = read_header(bytes(damaged))
            structure = inspect(bytes(damaged))
            sound = isinstance(structure, PictureHeader)
            assert not sound or header == structure
            assert header is None or header.orientation in range(1, 9)
            if not name.startswith("png"):
                pillow = find_defect(bytes(damaged)) is None
                decoded += pillow
                strict += pillow and not sound
                caught += not sound
    assert caught > 100
    assert decoded > 300
    assert strict <= decoded // 100


@given(
    st.binary(max_size=300),
    st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF\x20\0\0\0WEBPVP8X\x0a\0\0\0"]),
)
def test_garbage_never_raises(garbage: bytes, magic: bytes) -> None:
    header, structure = read_header(magic + garbage), inspect(magic + garbage)
    if isinstance(structure, PictureHeader):
        assert header == structure
    else:
        assert structure == find_structural_defect(magic + garbage)
        assert structure[0] is Reason.UNDECODABLE_IMAGE or header is not None


@given(
    st.lists(
        st.tuples(st.sampled_from([0xC0, 0xC2, 0xC4, 0xD9, 0xDA, 0xDB, 0xE1, 0xFE, 0x01, 0xFF]), st.binary(max_size=20))
    )
)
def test_made_up_jpegs_never_raise(parts: list[tuple[int, bytes]]) -> None:
    made = b"\xff\xd8" + b"".join(bytes([0xFF, m]) + struct.pack(">H", len(c) + 2) + c for m, c in parts)
    header, defect = read_header(made), find_structural_defect(made)
    markers = [marker for marker, _ in parts]
    if defect is None:
        assert {0xDA, 0xD9} <= {*made}
        assert header is not None
        assert header.height * header.width > 0
    if header is not None and 0xFF not in markers and 0x01 not in markers:
        assert markers.index(0xDA) > min(markers.index(frame) for frame in (0xC0, 0xC2) if frame in markers)


@pytest.mark.parametrize(
    "crafted",
    [
        b"\xff\xd8" + b"\xff\xfe\0\2" * 1_000_000,
        b"\xff\xd8" + b"\xff\xfe\0\2\xff" * 1_000_000,
        b"\xff\xd8" + b"\xff" * 4_000_000,
        b"\xff\xd8" + b"\xff\xda\0\2" + b"\xff\0" * 2_000_000,
        samples()["png"][:33] + png_chunk(b"teST", b"") * 1_000_000,
        b"RIFF" + struct.pack("<I", 8_000_022) + b"WEBPVP8X\x0a\0\0\0\2\0\0\0\5\0\0\5\0\0" + b"ANMF\0\0\0\0" * 1_000_000,
    ],
    ids=["comments", "comments and fill", "fill", "stuffed", "png", "webp"],
)
def test_a_million_tiny_chunks_take_no_time(crafted: bytes) -> None:
    start = time.process_time()
    assert find_structural_defect(crafted) is not None
    assert time.process_time() - start < 2  # 0.1 s; a quadratic walk would take minutes


def test_much_cheaper_than_decoding() -> None:
    encoded = encode(pixels(512, 384), "JPEG", quality=85)

    def seconds(check: object) -> float:
        times = []
        for _ in range(15):
            start = time.perf_counter()
            check(encoded)  # type: ignore[operator]
            times.append(time.perf_counter() - start)
        return min(times)

    assert 20 * seconds(inspect) < seconds(find_defect)
