"""`patchify`: pictures of one or of many sizes into rows of normalised patches, in one pass.

Registered with torch as `torch.ops.megatron_vlm.patchify`. It has no gradient: pixels are bytes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from megatron_vlm.ops.dtypes import dtype_code
from megatron_vlm.ops.faults import fault_flag
from megatron_vlm.ops.kernels import cuda_kernels
from megatron_vlm.ops.library import LIBRARY
from megatron_vlm.ops.native import native_operators
from megatron_vlm.ops.patchify_reference import patchify_reference

LIBRARY.define(
    "patchify(Tensor pixels, Tensor pictures, int patches, int patch_size, int group, float[] mean, float[] std, "
    "ScalarType dtype) -> (Tensor, Tensor)"
)


def picture_table(sizes: Sequence[tuple[int, int]], patch_size: int) -> Tensor:
    """int64 `[n, 4]` for `patchify`: byte offset, height, width and first patch of pictures that lie one after another.

    `sizes` are heights and widths in pixels.
    """
    table, offset, first = [], 0, 0
    for height, width in sizes:
        table.append((offset, height, width, first))
        offset += 3 * height * width
        first += (height // patch_size) * (width // patch_size)
    return torch.tensor(table, dtype=torch.int64).reshape(-1, 4)


def patchify(
    pixels: Tensor,
    pictures: Tensor,
    patches: int,
    *,
    patch_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype,
    group: int = 1,
) -> tuple[Tensor, Tensor]:
    """Patch rows `[patches, 3 * patch_size^2]` in `dtype`, and the (row, column) of each, int32 `[patches, 2]`.

    A row is channel first, then row, then column, as the weight of a strided convolution flattens; its values are
    `(x - 255 mean) / (255 std)` in fp32, rounded to `dtype`. A rest smaller than a patch at the right and lower edge is left
    out, as a convolution leaves it; padding patches are never made.

    Args:
        pixels: uint8 `[bytes]`, pictures in HWC order with three channels, one after another. Resizing is not done here.
        pictures: int64 `[n, 4]` on the same device, see `picture_table`.
        patches: of all pictures together.
        mean, std: three numbers each, of pictures scaled to [0, 1].
        group: patches come in blocks of group x group, blocks in reading order and inside a block in reading order, so that
            a later pixel-shuffle by `group` is a view. The grid of patches has to be a multiple of it.

    Raises:
        TypeError, ValueError: dtypes or shapes that do not fit; on the CPU also a table that does not fit pixels and
            patches, naming the picture. On a GPU its patches are left zero and `megatron_vlm.ops.faults.raise_faults` tells.
    """
    out: tuple[Tensor, Tensor] = torch.ops.megatron_vlm.patchify(
        pixels, pictures, patches, patch_size, group, list(mean), list(std), dtype
    )
    return out


def patchify_squares(
    pixels: Tensor, patch_size: int, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype, group: int = 1
) -> tuple[Tensor, Tensor]:
    """`patchify` for uint8 `[n, height, width, 3]`: rows `[n, patches, 3 * patch_size^2]` and the int32 `[patches, 2]`
    coordinates that every picture has."""
    n, height, width, _ = pixels.shape
    each = (height // patch_size) * (width // patch_size)
    number = torch.arange(n, device=pixels.device)
    table = torch.stack(
        [
            number * (3 * height * width),
            torch.full_like(number, height),
            torch.full_like(number, width),
            number * each,
        ],
        dim=1,
    )
    rows, coordinates = patchify(
        pixels.reshape(-1), table, n * each, patch_size=patch_size, mean=mean, std=std, dtype=dtype, group=group
    )
    return rows.view(n, each, 3 * patch_size * patch_size), coordinates[:each]


def _check(pixels: Tensor, pictures: Tensor, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype) -> None:
    if pixels.dim() != 1 or pixels.dtype != torch.uint8:
        raise TypeError(f"pixels must be uint8 [bytes], not {pixels.dtype} {list(pixels.shape)}")
    if pictures.dim() != 2 or pictures.size(1) != 4 or pictures.dtype != torch.int64:
        raise TypeError(f"pictures must be int64 [n, 4], not {pictures.dtype} {list(pictures.shape)}")
    if pixels.device != pictures.device:
        raise ValueError(f"pixels are on {pixels.device} and pictures on {pictures.device}: they must be on one device")
    if len(mean) != 3 or len(std) != 3:
        raise ValueError(f"mean and std must have three numbers each, not {len(mean)} and {len(std)}")
    dtype_code(dtype, "the output")


def scaled_to_bytes(statistics: Sequence[float]) -> tuple[float, float, float]:
    """`statistics` of pictures scaled to [0, 1], for pixels of 0 to 255, rounded in fp32 as the reference rounds them."""
    red, green, blue = (torch.tensor(list(statistics), dtype=torch.float32) * 255.0).tolist()
    return red, green, blue


@torch.library.impl(LIBRARY, "patchify", "CPU")
def _patchify_cpu(
    pixels: Tensor,
    pictures: Tensor,
    patches: int,
    patch_size: int,
    group: int,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    _check(pixels, pictures, mean, std, dtype)
    native = native_operators()
    if native is None:
        return patchify_reference(pixels, pictures, patches, patch_size, group, mean, std, dtype)
    pixels, pictures = pixels.contiguous(), pictures.contiguous()
    rows = pixels.new_empty(patches, 3 * patch_size * patch_size, dtype=dtype)
    coordinates = pixels.new_empty(patches, 2, dtype=torch.int32)
    native.patchify(
        rows.data_ptr(),
        coordinates.data_ptr(),
        pixels.data_ptr(),
        pixels.numel(),
        pictures.data_ptr(),
        pictures.size(0),
        patches,
        patch_size,
        group,
        scaled_to_bytes(mean),
        scaled_to_bytes(std),
        dtype_code(dtype, "the output"),
        torch.get_num_threads(),
    )
    return rows, coordinates


@torch.library.impl(LIBRARY, "patchify", "CUDA")
def _patchify_cuda(
    pixels: Tensor,
    pictures: Tensor,
    patches: int,
    patch_size: int,
    group: int,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    _check(pixels, pictures, mean, std, dtype)
    kernels = cuda_kernels()
    if kernels is None:
        return patchify_reference(pixels, pictures, patches, patch_size, group, mean, std, dtype)
    device = pixels.device
    rows = pixels.new_empty(patches, 3 * patch_size * patch_size, dtype=dtype)
    coordinates = pixels.new_empty(patches, 2, dtype=torch.int32)
    kernels.patchify(
        rows,
        coordinates,
        pixels.contiguous(),
        pictures.contiguous(),
        patch_size=patch_size,
        group=group,
        mean_255=scaled_to_bytes(mean),
        std_255=scaled_to_bytes(std),
        fault=fault_flag(device),
        stream=torch.cuda.current_stream(device).cuda_stream,
    )
    return rows, coordinates


@torch.library.register_fake("megatron_vlm::patchify", lib=LIBRARY)
def _patchify_fake(
    pixels: Tensor,
    pictures: Tensor,
    patches: int,
    patch_size: int,
    group: int,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    return pixels.new_empty(patches, 3 * patch_size * patch_size, dtype=dtype), pixels.new_empty(
        patches, 2, dtype=torch.int32
    )
