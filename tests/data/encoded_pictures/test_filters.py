"""Bounds are inclusive, and what is left out is told why."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_vlm.data.encoded_pictures.filters import CaptionFilter, PictureFilter
from megatron_vlm.data.encoded_pictures.picture_header import PictureHeader
from megatron_vlm.data.quarantine import Reason
from megatron_vlm.errors import ConfigError


@pytest.mark.parametrize(
    ("height", "width", "refusal"),
    [
        (64, 64, None),
        (64, 192, None),
        (63, 64, (Reason.SMALL_IMAGE, "64x63 pixels: a side of less than 64")),
        (64, 193, (Reason.EXTREME_ASPECT, "193x64 pixels: sides of more than 3 to 1")),
        (193, 64, (Reason.EXTREME_ASPECT, "64x193 pixels: sides of more than 3 to 1")),
        (100, 200, None),
        (101, 200, (Reason.OVERSIZED_IMAGE, "200x101 pixels: more than 20000")),
    ],
)
def test_pictures(height: int, width: int, refusal: object) -> None:
    chosen = PictureFilter(min_side=64, max_aspect=3.0, max_pixels=20_000)
    assert chosen.refusal(PictureHeader("png", height, width)) == refusal


@pytest.mark.parametrize(
    ("caption", "refusal"),
    [
        ("a cat sits", None),
        (" \n cat sat ", (Reason.SHORT_CAPTION, "7 characters, fewer than 8")),
        ("a cat sits on it", None),
        ("a cat sits on its", (Reason.LONG_CAPTION, "17 characters, more than 16")),
        ("cat\u2003sits here"[:9], (Reason.SHORT_CAPTION, "2 words, fewer than 3")),
        ("a é à ü 猫", None),
    ],
)
def test_captions(caption: str, refusal: object) -> None:
    assert CaptionFilter(min_chars=8, max_chars=16, min_words=3).refusal(caption) == refusal


@given(st.integers(1, 10**6), st.integers(1, 10**6), st.text())
def test_the_defaults_let_all_pass(height: int, width: int, caption: str) -> None:
    assert PictureFilter().refusal(PictureHeader("jpeg", height, width)) is None
    assert CaptionFilter().refusal(caption) is None


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 8))
def test_orientation_makes_no_difference(height: int, width: int, orientation: int) -> None:
    chosen = PictureFilter(min_side=500, max_aspect=1.5, max_pixels=4_000_000)
    stored = chosen.refusal(PictureHeader("jpeg", height, width, 1, orientation))
    turned = chosen.refusal(PictureHeader("jpeg", width, height))
    assert (stored is None) == (turned is None)
    if stored is not None and turned is not None:
        assert stored[0] is turned[0]


def test_settings_are_checked_and_travel_to_workers() -> None:
    for wrong in ({"min_side": 0}, {"max_aspect": 0.5}, {"max_aspect": float("nan")}, {"max_pixels": 0}):
        with pytest.raises(ConfigError, match=f"^{next(iter(wrong))} is"):
            PictureFilter(**wrong)  # type: ignore[arg-type]
    for wrong in ({"min_chars": -1}, {"min_words": -1}, {"max_chars": 0}, {"max_chars": 3, "min_chars": 4}):
        with pytest.raises(ConfigError, match=f"^{next(iter(wrong))} is"):
            CaptionFilter(**wrong)
    both = (PictureFilter(5, 2.0, 7), CaptionFilter(1, 2, 3))
    assert pickle.loads(pickle.dumps(both)) == both
