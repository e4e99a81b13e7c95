"""Rows of patches are what a strided convolution sees: any convolution's weight, flattened, gives its output."""

from __future__ import annotations

import pytest
import torch

from megatron_vlm.ops.patchify import patchify

MEAN, STD = torch.tensor([0.48, 0.46, 0.41]), torch.tensor([0.27, 0.26, 0.28])


def pictures(n: int, height: int, width: int) -> torch.Tensor:
    return torch.randint(0, 256, (n, height, width, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("height", "width", "patch"), [(8, 8, 4), (8, 12, 4), (6, 6, 1), (9, 14, 4), (384, 384, 14)])
def test_a_matrix_on_the_rows_is_a_convolution_of_the_picture(height: int, width: int, patch: int) -> None:
    pixels = pictures(1, height, width)
    weight = torch.randn(5, 3, patch, patch, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    rows = patchify(pixels, patch, MEAN, STD, torch.float32).double()
    normalised = (pixels.permute(0, 3, 1, 2).double() / 255 - MEAN[:, None, None]) / STD[:, None, None]
    expected = torch.nn.functional.conv2d(normalised, weight, stride=patch).flatten(2).transpose(1, 2)
    assert rows.shape == (1, (height // patch) * (width // patch), 3 * patch * patch)
    torch.testing.assert_close(rows @ weight.flatten(1).T, expected, rtol=1e-4, atol=1e-4)


def test_a_rest_smaller_than_a_patch_is_left_out() -> None:
    pixels = pictures(2, 11, 9)
    torch.testing.assert_close(
        patchify(pixels, 4, MEAN, STD, torch.float32),
        patchify(pixels[:, :8, :8], 4, MEAN, STD, torch.float32),
        rtol=0,
        atol=0,
    )


def test_black_and_white_are_minus_one_and_one_with_halves() -> None:
    half = torch.full((3,), 0.5)
    pixels = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 2, 2, 3)
    rows = patchify(pixels, 2, half, half, torch.float32)
    assert rows[0].unique().tolist() == [-1.0]
    assert rows[1].unique().tolist() == [1.0]


def test_channels_are_normalised_apart_and_come_first_in_a_row() -> None:
    mean, std = torch.tensor([0.0, 0.5, 1.0]), torch.tensor([1.0, 0.5, 0.25])
    row = patchify(torch.full((1, 2, 2, 3), 255, dtype=torch.uint8), 2, mean, std, torch.float32)[0, 0]
    assert row.tolist() == [1.0] * 4 + [1.0] * 4 + [0.0] * 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_rounded_once_at_the_end(dtype: torch.dtype) -> None:
    pixels = pictures(2, 8, 8)
    rows = patchify(pixels, 4, MEAN, STD, dtype)
    assert rows.dtype == dtype
    assert torch.equal(rows, patchify(pixels, 4, MEAN, STD, torch.float32).to(dtype))


def test_no_pictures() -> None:
    assert patchify(pictures(0, 8, 8), 4, MEAN, STD, torch.float32).shape == (0, 4, 48)
