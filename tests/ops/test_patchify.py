"""Rows of patches are what a strided convolution sees: any convolution's weight, flattened, gives its output."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from megatron_vlm.ops.patchify import patchify, patchify_squares, picture_table
from megatron_vlm.ops.patchify_reference import patchify_reference

MEAN, STD = [0.48, 0.46, 0.41], [0.27, 0.26, 0.28]


def rows_of(pixels: torch.Tensor, patch: int, mean: list[float], std: list[float], dtype: torch.dtype) -> torch.Tensor:
    return patchify_squares(pixels, patch, mean, std, dtype)[0]


def pictures(n: int, height: int, width: int) -> torch.Tensor:
    return torch.randint(0, 256, (n, height, width, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("height", "width", "patch"), [(8, 8, 4), (8, 12, 4), (6, 6, 1), (9, 14, 4), (384, 384, 14)])
def test_a_matrix_on_the_rows_is_a_convolution_of_the_picture(height: int, width: int, patch: int) -> None:
    pixels = pictures(1, height, width)
    weight = torch.randn(5, 3, patch, patch, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    rows = rows_of(pixels, patch, MEAN, STD, torch.float32).double()
    normalised = (pixels.permute(0, 3, 1, 2).double() / 255 - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[
        :, None, None
    ]
    expected = torch.nn.functional.conv2d(normalised, weight, stride=patch).flatten(2).transpose(1, 2)
    assert rows.shape == (1, (height // patch) * (width // patch), 3 * patch * patch)
    torch.testing.assert_close(rows @ weight.flatten(1).T, expected, rtol=1e-4, atol=1e-4)


def test_a_rest_smaller_than_a_patch_is_left_out() -> None:
    pixels = pictures(2, 11, 9)
    torch.testing.assert_close(
        rows_of(pixels, 4, MEAN, STD, torch.float32),
        rows_of(pixels[:, :8, :8], 4, MEAN, STD, torch.float32),
        rtol=0,
        atol=0,
    )


def test_black_and_white_are_minus_one_and_one_with_halves() -> None:
    half = [0.5] * 3
    pixels = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 2, 2, 3)
    rows = rows_of(pixels, 2, half, half, torch.float32)
    assert rows[0].unique().tolist() == [-1.0]
    assert rows[1].unique().tolist() == [1.0]


def test_channels_are_normalised_apart_and_come_first_in_a_row() -> None:
    mean, std = [0.0, 0.5, 1.0], [1.0, 0.5, 0.25]
    row = rows_of(torch.full((1, 2, 2, 3), 255, dtype=torch.uint8), 2, mean, std, torch.float32)[0, 0]
    assert row.tolist() == [1.0] * 4 + [1.0] * 4 + [0.0] * 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_rounded_once_at_the_end(dtype: torch.dtype) -> None:
    pixels = pictures(2, 8, 8)
    rows = rows_of(pixels, 4, MEAN, STD, dtype)
    assert rows.dtype == dtype
    assert torch.equal(rows, rows_of(pixels, 4, MEAN, STD, torch.float32).to(dtype))


def test_no_pictures() -> None:
    assert rows_of(pictures(0, 8, 8), 4, MEAN, STD, torch.float32).shape == (0, 4, 48)


DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


@given(
    grids=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(0, 2), st.integers(0, 2)), max_size=5),
    patch_size=st.sampled_from([1, 3, 14, 16]),
    group=st.integers(1, 3),
    dtype=st.sampled_from(DTYPES),
    threads=st.sampled_from([1, 3]),
    seed=st.integers(0, 99),
)
def test_pictures_of_many_sizes_give_the_reference_to_the_bit(grids, patch_size, group, dtype, threads, seed) -> None:
    """Grids of any number of groups, with a rest smaller than a patch at either edge."""
    sizes = [
        (h * group * patch_size + min(a, patch_size - 1), w * group * patch_size + min(b, patch_size - 1))
        for h, w, a, b in grids
    ]
    table = picture_table(sizes, patch_size)
    count = sum((h // patch_size) * (w // patch_size) for h, w in sizes)
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (sum(3 * h * w for h, w in sizes),), dtype=torch.uint8, generator=generator)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = patchify(pixels, table, count, patch_size=patch_size, mean=MEAN, std=STD, dtype=dtype, group=group)
    finally:
        torch.set_num_threads(before)
    expected = patchify_reference(pixels, table, count, patch_size, group, MEAN, STD, dtype)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_large_outputs_over_threads_give_the_reference_to_the_bit(dtype: torch.dtype) -> None:
    """Large enough for streamed stores and more than one thread; 15 divides into no register."""
    sizes = [(300, 450), (150, 900)] * 12
    table = picture_table(sizes, 15)
    pixels = torch.randint(0, 256, (sum(3 * h * w for h, w in sizes),), dtype=torch.uint8)
    count = 24 * 600
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        found, _ = patchify(pixels, table, count, patch_size=15, mean=MEAN, std=STD, dtype=dtype)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found, patchify_reference(pixels, table, count, 15, 1, MEAN, STD, dtype)[0])


@pytest.mark.parametrize(
    ("table", "patches", "message"),
    [
        ([[0, 8, 8, 0], [0, 8, 8, 3]], 8, "picture 1: its first patch is 3"),
        ([[1, 8, 8, 0]], 4, "picture 0: its pixels end outside the 192 bytes"),
        ([[-1, 8, 8, 0]], 4, "picture 0: its pixels end outside"),
        ([[0, 8, -8, 0]], 4, "8 x -8 is no size"),
        ([[0, 1 << 40, 1 << 40, 0]], 4, "is no size"),
        ([[0, 8, 8, 0]], 5, "have 4 patches, not 5"),
        ([[0, 4, 8, 0]], 2, "1 x 2 patches do not divide into groups of 2 x 2"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(table, patches, message) -> None:
    pixels = torch.zeros(192, dtype=torch.uint8)
    group = 2 if "groups" in message else 1
    with pytest.raises(ValueError, match=message):
        patchify(pixels, torch.tensor(table), patches, patch_size=4, mean=MEAN, std=STD, dtype=torch.float32, group=group)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"pixels": torch.zeros(192)}, r"pixels must be uint8 \[bytes\], not torch.float32"),
        ({"pictures": torch.tensor([[0, 8, 8, 0]], dtype=torch.int32)}, r"pictures must be int64 \[n, 4\]"),
        ({"dtype": torch.int32}, "the output has dtype int32"),
    ],
)
def test_wrong_dtypes_are_named(changed, message) -> None:
    arguments = {
        "pixels": torch.zeros(192, dtype=torch.uint8),
        "pictures": torch.tensor([[0, 8, 8, 0]]),
        "patches": 4,
        "patch_size": 4,
        "mean": MEAN,
        "std": STD,
        "dtype": torch.float32,
    }
    with pytest.raises(TypeError, match=message):
        patchify(**(arguments | changed))


def test_torch_accepts_the_operator() -> None:
    pixels = torch.randint(0, 256, (192,), dtype=torch.uint8)
    arguments = (pixels, torch.tensor([[0, 8, 8, 0]]), 4, 4, 2, MEAN, STD, torch.bfloat16)
    assert set(torch.library.opcheck(torch.ops.megatron_vlm.patchify.default, arguments).values()) == {"SUCCESS"}
