"""Scaling gives Pillow's bits, across and then down: any sizes, any part, grey or colour, into a part of a picture."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from megatron_vlm.ops import resize
from megatron_vlm.ops.native import native_operators
from megatron_vlm.ops.resize import resize_bicubic, resize_bicubic_reference

SIDES = st.one_of(st.integers(1, 40), st.integers(1, 300))


def test_there_is_native_code_to_test() -> None:
    assert native_operators() is not None, "build it with `make`"


@st.composite
def boxes(draw: st.DrawFn, height: int, width: int) -> tuple[float, float, float, float]:
    if draw(st.booleans()):
        return 0.0, 0.0, float(width), float(height)
    left, right = sorted(draw(st.lists(st.floats(0, width, width=32), min_size=2, max_size=2)))
    upper, lower = sorted(draw(st.lists(st.floats(0, height, width=32), min_size=2, max_size=2)))
    # a part of less than a pixel is no picture
    whole = 0.0, 0.0, float(width), float(height)
    return (left, upper, right, lower) if right - left >= 0.5 and lower - upper >= 0.5 else whole


@given(st.data(), SIDES, SIDES, SIDES, SIDES, st.sampled_from([1, 3]), st.integers(0, 9))
def test_the_bits_are_pillows(
    data: st.DataObject, height: int, width: int, rows: int, columns: int, channels: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    # extremes overshoot where they meet, and are clipped
    spread = (
        rng.integers(0, 256, (height, width, channels)) if seed % 2 else rng.integers(0, 2, (height, width, channels)) * 255
    )
    pixels = spread.astype(np.uint8)
    box = data.draw(boxes(height, width))
    canvas = np.full((rows + 2, columns + 3, channels), 77, np.uint8)
    resize_bicubic(pixels, box, canvas[1 : rows + 1, 2 : columns + 2])
    expected = np.zeros((rows, columns, channels), np.uint8)
    resize_bicubic_reference(pixels, box, expected)
    np.testing.assert_array_equal(canvas[1 : rows + 1, 2 : columns + 2], expected)
    beside = np.ones(canvas.shape, bool)
    beside[1 : rows + 1, 2 : columns + 2] = False
    assert (canvas[beside] == 77).all()


@pytest.mark.parametrize(("height", "width", "size"), [(256, 256, 224), (200, 300, 384), (640, 480, 224), (224, 224, 224)])
def test_pictures_of_ordinary_shapes_are_as_one_call_of_pillow_makes_them(height: int, width: int, size: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)
    out = np.zeros((size, size, 3), np.uint8)
    resize_bicubic(pixels, (0, 0, width, height), out)
    np.testing.assert_array_equal(out, Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC))


def test_without_the_extension_pillow_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (30, 50, 3)).astype(np.uint8)
    one, other, third = np.zeros((3, 17, 23, 3), np.uint8)
    box = (1.5, 0.0, 40.25, 29.0)
    resize_bicubic(pixels, box, one)
    resize_bicubic_reference(pixels, box, other)
    monkeypatch.setattr(resize, "native_operators", lambda: None)
    resize_bicubic(pixels, box, third)
    assert one.any()
    np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(one, third)


@pytest.mark.parametrize(
    ("pixels", "box", "out"),
    [
        (np.zeros((4, 4), np.uint8), (0, 0, 4, 4), np.zeros((2, 2, 3), np.uint8)),
        (np.zeros((4, 4, 3), np.int32), (0, 0, 4, 4), np.zeros((2, 2, 3), np.uint8)),
        (np.zeros((4, 4, 3), np.uint8), (0, 0, 4, 4), np.zeros((0, 2, 3), np.uint8)),
        (np.zeros((4, 4, 2), np.uint8), (0, 0, 4, 4), np.zeros((2, 2, 2), np.uint8)),
        (np.zeros((4, 4, 3), np.uint8), (0, 0, 4, 4), np.zeros((2, 2, 1), np.uint8)),
        (np.zeros((4, 8, 3), np.uint8)[:, ::2], (0, 0, 4, 4), np.zeros((2, 2, 3), np.uint8)),
        (np.zeros((4, 4, 3), np.uint8), (0, 0, 4, 4), np.zeros((2, 4, 3), np.uint8)[:, ::2]),
        (np.zeros((4, 4, 3), np.uint8), (0, 0, 4, 4), np.zeros((2, 2, 3), np.uint8)[::-1]),
        (np.zeros((4, 4, 3), np.uint8), (0, 0, 5, 4), np.zeros((2, 2, 3), np.uint8)),
        (np.zeros((4, 4, 3), np.uint8), (-1, 0, 4, 4), np.zeros((2, 2, 3), np.uint8)),
        (np.zeros((4, 4, 3), np.uint8), (2, 0, 2, 4), np.zeros((2, 2, 3), np.uint8)),
        (np.zeros((4, 4, 3), np.uint8), (0, 0, float("nan"), 4), np.zeros((2, 2, 3), np.uint8)),
    ],
)
def test_what_does_not_fit_is_refused(pixels: np.ndarray, box: tuple[float, ...], out: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"must be|channels in both|does not lie|contiguous"):
        resize_bicubic(pixels, box, out)  # type: ignore[arg-type]


def test_a_canvas_that_must_not_be_written_to_is_refused() -> None:
    out = np.zeros((2, 2, 3), np.uint8)
    out.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        resize_bicubic(np.zeros((4, 4, 3), np.uint8), (0, 0, 4, 4), out)
