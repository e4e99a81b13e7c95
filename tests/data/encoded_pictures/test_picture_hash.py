"""Hashes find copies, and do not take other pictures for them."""

from __future__ import annotations

import hashlib
import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from megatron_vlm.data.encoded_pictures.picture_hash import difference_hash, hamming, sha256_key
from megatron_vlm.data.encoded_pictures.reencode import Reencode
from megatron_vlm.data.encoded_pictures.unusable import UnusablePicture
from tests.data.encoded_pictures.samples import encode, exif, samples


def scene(seed: int, width: int = 400, height: int = 300) -> Image.Image:
    """Large soft shapes, as photographs have."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3)).astype(np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def plain_hash(picture: Image.Image) -> int:
    """Krawetz' algorithm, as he tells it, without any shortcut."""
    small = np.asarray(picture.convert("L").resize((9, 8), Image.Resampling.LANCZOS)).astype(int)
    return int("".join("01"[int(left < right)] for row in small for left, right in zip(row, row[1:], strict=False)), 2)


def test_bytes_have_a_key() -> None:
    assert sha256_key(b"abc") == bytes.fromhex("ba7816bf8f01cfea414140de5dae2223")
    assert sha256_key(b"abc") == hashlib.sha256(b"abc").digest()[:16]
    assert len({sha256_key(encoded) for encoded in samples().values()}) == len(samples())


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_the_published_algorithm(form: str) -> None:
    distances = []
    for seed in range(20):
        encoded = encode(scene(seed), form)
        with Image.open(io.BytesIO(encoded)) as picture:
            distances.append(hamming(difference_hash(encoded), plain_hash(picture)))
    assert max(distances) <= 3
    assert np.mean(distances) < 1


def test_bits_run_from_the_upper_left() -> None:
    rows = np.full((8, 9), 100, np.uint8)
    rows[0, 1:] = 200  # the first pixel is darker than the second
    rows[7, :8] = 50  # the last but one is darker than the last
    assert difference_hash(encode(rows, "PNG")) == 1 << 63 | 1


def test_copies_have_nearly_the_same_hash_and_others_do_not() -> None:
    near, far = [], []
    hashes = []
    for seed in range(20):
        original = encode(scene(seed), "PNG")
        first = difference_hash(original)
        for copy in (
            Reencode(max_side=128, format="jpeg", quality=60).apply(original),
            Reencode(max_side=333, format="webp", quality=50).apply(original),
            encode(scene(seed), "JPEG", quality=30, progressive=True),
            encode(scene(seed).resize((1000, 700)), "JPEG"),
        ):
            near.append(hamming(first, difference_hash(copy)))
        far += [hamming(first, other) for other in hashes]
        hashes.append(first)
    assert max(near) <= 6
    assert np.mean(np.array(near) <= 1) > 0.75
    assert min(far) > 10


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_copy_that_says_so_is_the_same_picture(orientation: int) -> None:
    stored = encode(scene(3), "JPEG", exif=exif(orientation), quality=95)
    with Image.open(io.BytesIO(stored)) as picture:
        upright = ImageOps.exif_transpose(picture)
    assert hamming(difference_hash(stored), plain_hash(upright)) <= 3
    assert hamming(difference_hash(Reencode(format="png").apply(stored)), difference_hash(stored)) <= 3


@pytest.mark.parametrize("name", sorted(samples()))
def test_every_kind_of_picture_has_one(name: str) -> None:
    value = difference_hash(samples()[name])
    assert 0 <= value < 1 << 64
    assert value > 0 or "one pixel" in name


def test_transparent_is_white() -> None:
    clear = np.zeros((32, 32, 4), np.uint8)
    clear[:, 16:] = (255, 255, 255, 255)  # black and clear to the left, white to the right: all white
    assert difference_hash(encode(clear, "PNG")) == 0


def test_what_is_no_picture_has_none() -> None:
    for encoded in (b"", samples()["webp"][:-30]):
        with pytest.raises(UnusablePicture, match="undecodable_image"):
            difference_hash(encoded)
