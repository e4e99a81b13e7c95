"""Pictures of every kind that sources hold, laid on white, at the encoder's size; and damaged ones refused by name. Every
decoder is held to the same."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from megatron_vlm.config.pictures import PicturesConfig
from megatron_vlm.data.decoding import canvas
from megatron_vlm.data.decoding.decoder import Decoder, open_decoder
from megatron_vlm.data.pictures import decode_picture
from megatron_vlm.errors import DataError

Pixel = Callable[..., list[int]]


def encoded(picture: Image.Image, form: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, form, **options)
    return stream.getvalue()


@pytest.fixture(params=["pillow", "simplejpeg"])
def decoder(request: pytest.FixtureRequest) -> Decoder:
    return open_decoder(PicturesConfig(decoder=request.param))


@pytest.fixture
def pixel(decoder: Decoder) -> Pixel:
    def seen(picture: Image.Image, form: str = "PNG", **options: object) -> list[int]:
        return decode_picture(encoded(picture, form, **options), 4, "here", decoder)[1, 2].tolist()

    return seen


@pytest.mark.parametrize(
    ("mode", "colour", "seen"),
    [
        ("RGB", (10, 20, 30), [10, 20, 30]),
        ("L", 90, [90] * 3),
        ("1", 1, [255] * 3),
        ("RGBA", (10, 20, 30, 255), [10, 20, 30]),
        ("RGBA", (10, 20, 30, 0), [255] * 3),
        ("RGBA", (0, 100, 200, 51), [204, 224, 244]),  # one fifth of it on white
        ("LA", (50, 51), [214] * 3),
        ("LA", (50, 0), [255] * 3),
    ],
)
def test_every_mode_is_laid_on_white(pixel: Pixel, mode: str, colour: object, seen: list[int]) -> None:
    assert pixel(Image.new(mode, (4, 4), colour)) == pytest.approx(seen, abs=1)  # type: ignore[arg-type]


def test_a_palette_with_a_transparent_entry(pixel: Pixel) -> None:
    picture = Image.new("P", (4, 4), 0)
    picture.putpalette([200, 0, 0, 0, 200, 0])
    assert pixel(picture) == [200, 0, 0]
    assert pixel(picture, transparency=1) == [200, 0, 0]
    assert pixel(picture, transparency=0) == [255] * 3


def test_a_colour_declared_transparent(pixel: Pixel) -> None:
    assert pixel(Image.new("RGB", (4, 4), (9, 8, 7)), transparency=(9, 8, 7)) == [255] * 3


@pytest.mark.parametrize("value", [0, 0x4080, 0x8000, 0xFFFF])
def test_grey_of_16_bits_keeps_its_brightness(pixel: Pixel, value: int) -> None:
    picture = Image.fromarray(np.full((4, 4), value, np.uint16))
    assert pixel(picture) == [value >> 8] * 3


def test_print_colours(pixel: Pixel) -> None:
    assert pixel(Image.new("CMYK", (4, 4), (0, 255, 255, 0)), "JPEG") == pytest.approx([254, 0, 0], abs=6)


@pytest.mark.parametrize(("width", "height"), [(4, 4), (9, 3), (2, 7), (1, 1)])
@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_shape_and_type(decoder: Decoder, form: str, width: int, height: int) -> None:
    pixels = decode_picture(encoded(Image.new("RGB", (width, height), (200, 100, 50)), form), 4, "here", decoder)
    assert pixels.shape == (4, 4, 3)
    assert pixels.dtype == np.uint8
    assert np.abs(pixels.astype(int) - (200, 100, 50)).max() <= 6


def test_a_picture_of_the_right_size_is_not_resampled(decoder: Decoder) -> None:
    values = np.random.default_rng(0).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    np.testing.assert_array_equal(decode_picture(encoded(Image.fromarray(values)), 8, "here", decoder), values)


def test_sides_are_squashed_and_nothing_is_cropped(decoder: Decoder) -> None:
    values = np.zeros((4, 40, 3), np.uint8)
    values[:, 20:] = 255
    pixels = decode_picture(encoded(Image.fromarray(values)), 4, "here", decoder)
    assert pixels[:, 0].max() < 20
    assert pixels[:, 3].min() > 235


def test_a_large_jpeg_is_decoded_at_a_fraction_of_its_size(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    slope = np.broadcast_to(np.linspace(0, 255, 512)[None, :, None], (512, 512, 3)).astype(np.uint8)
    data = encoded(Image.fromarray(slope), "JPEG", quality=95)
    sizes: list[tuple[int, int]] = []
    resize = canvas.resize_bicubic

    def spy(pixels: np.ndarray, *rest: Any) -> None:
        sizes.append(pixels.shape[:2])
        resize(pixels, *rest)

    monkeypatch.setattr(canvas, "resize_bicubic", spy)
    pixels = decode_picture(data, 33, "here", decoder)
    assert sizes == [(64, 64)], "512 / 8, the smallest fraction that is not below 33"
    columns = (np.arange(33) + 0.5) / 33 * 255
    assert np.abs(pixels.mean((0, 2)) - columns).max() < 5


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_a_truncated_file_names_where(decoder: Decoder, form: str) -> None:
    values = np.random.default_rng(0).integers(0, 256, (16, 16, 3)).astype(np.uint8)
    data = encoded(Image.fromarray(values), form)
    for length in (0, 3, 11, len(data) // 2, len(data) - 40):
        with pytest.raises(DataError, match=r"^data/x, document 7: the picture does not decode .*; preprocess"):
            decode_picture(data[:length], 4, "data/x, document 7", decoder)


def test_no_damage_ends_in_another_error(decoder: Decoder) -> None:
    """A flipped byte may still decode; what does not must be a DataError."""
    rng = np.random.default_rng(0)
    refused = 0
    for form in ("PNG", "JPEG", "WEBP"):
        data = encoded(Image.fromarray(rng.integers(0, 256, (16, 16, 3)).astype(np.uint8)), form)
        for _ in range(150):
            damaged = bytearray(data)
            damaged[rng.integers(len(data))] ^= int(rng.integers(1, 256))
            try:
                decode_picture(bytes(damaged), 4, "here", decoder)
            except DataError:
                refused += 1
    assert refused > 100


def test_a_picture_that_would_fill_the_memory_is_refused(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(Image.new("L", (64, 64)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(DataError, match="decompression bomb"):
        decode_picture(data, 4, "here", decoder)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_upright_as_its_exif_says(decoder: Decoder, orientation: int) -> None:
    shown = Image.new("RGB", (64, 64))
    shown.paste((255, 0, 0), (0, 0, 32, 32))  # upper left
    shown.paste((0, 255, 0), (32, 0, 64, 32))  # upper right
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = encoded(shown, "JPEG", quality=95, exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(stored))).convert("RGB"))
    assert np.array_equal(decode_picture(stored, 64, "here", decoder), expected)
