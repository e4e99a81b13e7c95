"""Smaller pictures that look like the large ones."""

from __future__ import annotations

import io
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from megatron_vlm.data.encoded_pictures.picture_header import read_header
from megatron_vlm.data.encoded_pictures.reencode import Reencode
from megatron_vlm.data.encoded_pictures.strip_metadata import strip_metadata
from megatron_vlm.data.encoded_pictures.unusable import UnusablePicture
from megatron_vlm.data.picture_check import find_defect
from megatron_vlm.data.pictures import decode_picture
from megatron_vlm.data.quarantine import Reason
from megatron_vlm.errors import ConfigError
from tests.data.encoded_pictures.samples import COMMENT, GPS_TEXT, decode, encode, exif, pixels, samples, swapped_profile

NAMES = sorted(samples())


def smooth(width: int, height: int, blue: int = 60) -> np.ndarray:
    """Red to the right, green downwards: which way up it is can be seen, and resampling changes little."""
    values = np.full((height, width, 3), blue, np.uint8)
    values[:, :, 0] = np.linspace(0, 255, width)[None, :]
    values[:, :, 1] = np.linspace(0, 255, height)[:, None]
    return values


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("target", ["keep", "jpeg", "webp", "png"])
def test_every_kind_of_picture_shrinks(name: str, target: str) -> None:
    encoded = samples()[name]
    header = read_header(encoded)
    assert header is not None
    small = Reencode(max_side=10, format=target, quality=95).apply(encoded)  # type: ignore[arg-type]
    assert small == Reencode(max_side=10, format=target, quality=95).apply(encoded)  # type: ignore[arg-type]
    assert find_defect(small) is None
    seen = read_header(small)
    assert seen is not None
    assert seen.format == (header.format if target == "keep" else target)
    assert (seen.height, seen.width) == {(24, 40): (6, 10), (40, 24): (10, 6), (1, 1): (1, 1)}[header.shown_size]
    # Training shows both alike: seen through the eyes of its own decoder, which does not turn pictures
    with Image.open(io.BytesIO(encoded)) as picture:
        upright = ImageOps.exif_transpose(picture)
        upright.info.pop("icc_profile", None)
        reference = decode_picture(encode(upright, "PNG"), 4, "here") if picture.mode != "CMYK" else None
    if reference is not None and "transparent" not in name:
        difference = np.abs(decode_picture(small, 4, "here").astype(int) - reference)
        assert difference.mean() < 12


@pytest.mark.parametrize("name", [name for name in NAMES if "exif" not in name])
@pytest.mark.parametrize("strip", [False, True])
def test_what_is_small_enough_stays_as_it_is(name: str, strip: bool) -> None:
    encoded = samples()[name]
    for max_side in (None, 40, 41, 10_000):
        assert Reencode(max_side=max_side, strip=strip).apply(encoded) is encoded


@pytest.mark.parametrize("name", ["jpeg exif", "png exif", "webp exif"])
def test_metadata_is_stripped_only_where_asked_for(name: str) -> None:
    encoded = samples()[name]
    assert Reencode(max_side=40).apply(encoded) is encoded
    assert Reencode(max_side=40, strip=True).apply(encoded) == strip_metadata(encoded) != encoded
    for target in ("jpeg", "png", "webp"):
        small = Reencode(max_side=20, format=target).apply(encoded)  # type: ignore[arg-type]
        assert COMMENT not in small
        assert GPS_TEXT not in small
        with Image.open(io.BytesIO(small)) as picture:
            assert not picture.getexif()
            assert "icc_profile" not in picture.info
        assert strip_metadata(small) is small


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_upright_afterwards(form: str, orientation: int) -> None:
    encoded = encode(smooth(160, 96), form, exif=exif(orientation))
    with Image.open(io.BytesIO(encoded)) as picture:
        upright = ImageOps.exif_transpose(picture).convert("RGB")
    small = decode(Reencode(max_side=40, format="png").apply(encoded))
    expected = np.asarray(upright.resize((40, 24) if orientation < 5 else (24, 40), Image.Resampling.LANCZOS))
    assert small.shape == expected.shape
    assert np.abs(small.astype(int) - expected).mean() < 2


@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 100))
def test_never_larger_and_of_the_same_shape(width: int, height: int, max_side: int) -> None:
    encoded = encode(Image.new("L", (width, height)), "PNG", compress_level=0)
    header = read_header(Reencode(max_side=max_side).apply(encoded))
    assert header is not None
    assert max(header.width, header.height) == min(max_side, max(width, height))
    scale = min(1, max_side / max(width, height))
    assert abs(header.width - max(1, width * scale)) <= 0.5
    assert abs(header.height - max(1, height * scale)) <= 0.5


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_close_to_lanczos_on_all_pixels(form: str) -> None:
    """Fractions of a JPEG and averages before Lanczos are a matter of speed alone."""
    values = pixels(640, 480)
    encoded = encode(values, form, **({"quality": 95} if form == "JPEG" else {}))
    small = decode(Reencode(max_side=100, format="png").apply(encoded)).astype(int)
    exact = np.asarray(Image.fromarray(values).resize((100, 75), Image.Resampling.LANCZOS))
    assert np.abs(small - exact).mean() < 6


def test_transparent_is_white_in_jpeg_and_stays_in_others() -> None:
    values = np.dstack([np.full((40, 40, 3), (200, 0, 0), np.uint8), np.zeros((40, 40), np.uint8)])
    values[:, 20:, 3] = 255
    encoded = encode(values, "PNG")
    jpeg = decode(Reencode(max_side=20, format="jpeg", quality=95).apply(encoded))
    assert jpeg[10, 3].tolist() == pytest.approx([255] * 3, abs=8)
    assert jpeg[10, 17].tolist() == pytest.approx([200, 0, 0], abs=12)
    for target in ("png", "webp"):
        kept = decode(Reencode(max_side=20, format=target, quality=95).apply(encoded))  # type: ignore[arg-type]
        assert kept.shape == (20, 20, 4)
        assert kept[10, 3, 3] == 0
        assert kept[10, 17].tolist() == pytest.approx([200, 0, 0, 255], abs=12)


@pytest.mark.parametrize("name", ["png palette transparent", "png colour transparent"])
def test_declared_transparency_is_white_in_jpeg(name: str) -> None:
    encoded = samples()[name]
    seen = decode_picture(Reencode(format="jpeg", quality=100).apply(encoded), 8, "here").astype(int)
    assert np.abs(seen - decode_picture(encoded, 8, "here")).mean() < 8


def test_grey_of_16_bits_keeps_its_brightness() -> None:
    encoded = encode(Image.fromarray(np.full((8, 8), 0x8000, np.uint16)), "PNG")
    assert decode(Reencode(max_side=4).apply(encoded)).tolist() == [[128] * 4] * 4


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_colours_are_those_of_the_profile(mode: str) -> None:
    """A profile that calls red green and green red, which the pixels must then show without it."""
    colour = (255, 0, 0, 128)[: len(mode)]
    encoded = encode(Image.new(mode, (8, 8), colour), "PNG", icc_profile=swapped_profile())
    small = decode(Reencode(max_side=4).apply(encoded))
    assert small[2, 2].tolist() == pytest.approx([0, 255, 0, 128][: len(mode)], abs=8)


def test_a_profile_that_is_none_or_of_another_kind_is_passed_over() -> None:
    for profile in (b"no profile at all", b"\0" * 128, swapped_profile()):
        encoded = encode(Image.new("L", (8, 8), 77), "PNG", icc_profile=profile)
        assert decode(Reencode(max_side=4).apply(encoded)).tolist() == [[77] * 4] * 4


def test_print_colours_become_rgb() -> None:
    encoded = encode(Image.new("CMYK", (32, 32), (0, 255, 255, 0)), "JPEG", quality=95)
    small = decode(Reencode(max_side=8).apply(encoded))
    assert small[4, 4].tolist() == pytest.approx([254, 0, 0], abs=8)


def test_damaged_and_oversized_pictures_are_refused_by_name() -> None:
    for encoded in (b"", b"<html>", samples()["png"][:-40]):
        with pytest.raises(UnusablePicture) as caught:
            Reencode(max_side=4).apply(encoded)
        assert caught.value.reason is Reason.UNDECODABLE_IMAGE
    wide = encode(Image.new("1", (20_000, 1)), "PNG")
    with pytest.raises(UnusablePicture, match="oversized_image: 20000x1 pixels: webp has 16383 a side at most"):
        Reencode(format="webp").apply(wide)
    assert Reencode(format="webp", max_side=16_383).apply(wide)


def test_no_damage_ends_in_another_error() -> None:
    rng = np.random.default_rng(0)
    refusals: list[str] = []
    passed = 0
    for name in NAMES:
        for _ in range(12):
            damaged = bytearray(samples()[name])
            for _ in range(3):
                damaged[rng.integers(len(damaged))] ^= int(rng.integers(1, 256))
            try:
                small = Reencode(max_side=9, format="jpeg").apply(bytes(damaged))
            except UnusablePicture as error:
                refusals.append(str(error))
                continue
            passed += 1
            assert small == damaged or find_defect(small) is None  # what stays as it is was not decoded
    assert len(refusals) > 100
    assert not any("0x7" in refusal for refusal in refusals), "an address, which would differ between runs"
    assert passed > 50


def test_settings_are_checked_and_travel_to_workers() -> None:
    for wrong in ({"max_side": 0}, {"format": "gif"}, {"quality": 0}, {"quality": 101}):
        with pytest.raises(ConfigError, match=f"^{next(iter(wrong))} is"):
            Reencode(**wrong)  # type: ignore[arg-type]
    assert pickle.loads(pickle.dumps(Reencode(5, "webp", 80, True))) == Reencode(5, "webp", 80, True)
