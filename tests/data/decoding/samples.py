"""Photographs of a kind: smooth ground, some noise, encoded in the ways that sources have."""

from __future__ import annotations

import io

import numpy as np
from hypothesis import strategies as st
from PIL import Image


def photograph(height: int, width: int, seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    ground = rng.integers(0, 256, (height // 16 + 2, width // 16 + 2, 3)).astype(np.uint8)
    smooth = Image.fromarray(ground).resize((width, height), Image.Resampling.BICUBIC)
    noise = Image.fromarray(rng.integers(0, 256, (height, width, 3)).astype(np.uint8))
    return Image.blend(smooth, noise, 0.1)


def encode(picture: Image.Image, form: str = "JPEG", orientation: int | None = None, **options: object) -> bytes:
    if orientation is not None:
        exif = Image.Exif()
        exif[0x0112] = orientation
        options["exif"] = exif
    stream = io.BytesIO()
    picture.save(stream, form, **options)
    return stream.getvalue()


@st.composite
def jpegs(draw: st.DrawFn, most: int = 300) -> bytes:
    height, width = draw(st.integers(1, most)), draw(st.integers(1, most))
    picture = photograph(height, width, draw(st.integers(0, 9)))
    if draw(st.booleans()):
        picture = picture.convert(draw(st.sampled_from(["L", "RGB"])))
    options: dict[str, object] = {"quality": draw(st.sampled_from([30, 75, 90])), "progressive": draw(st.booleans())}
    if picture.mode == "RGB":
        options |= draw(st.sampled_from([{"subsampling": 0}, {"subsampling": 1}, {"subsampling": 2}, {"keep_rgb": True}]))
    return encode(picture, orientation=draw(st.sampled_from([None, *range(1, 9)])), **options)
