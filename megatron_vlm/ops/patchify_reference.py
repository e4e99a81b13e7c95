"""Pictures into normalised patch rows, in plain PyTorch: what the native operator is compared with, and what serves where
it is not built."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def patchify_reference(
    pixels: Tensor,
    pictures: Tensor,
    patches: int,
    patch_size: int,
    group: int,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """`patchify` of `megatron_vlm.ops.patchify`: the same arguments, and the same result to the bit."""
    mean_255 = torch.tensor(mean, dtype=torch.float32, device=pixels.device) * 255.0
    std_255 = torch.tensor(std, dtype=torch.float32, device=pixels.device) * 255.0
    out = pixels.new_empty(patches, 3 * patch_size * patch_size, dtype=dtype)
    coordinates = pixels.new_empty(patches, 2, dtype=torch.int32)
    for offset, height, width, first in pictures.tolist():
        rows, columns = height // patch_size, width // patch_size
        count = rows * columns
        picture = pixels[offset : offset + 3 * height * width].view(height, width, 3)
        x = (picture[: rows * patch_size, : columns * patch_size].float() - mean_255) / std_255
        x = x.reshape(rows // group, group, patch_size, columns // group, group, patch_size, 3)
        x = x.permute(0, 3, 1, 4, 6, 2, 5)  # block row, block column, row and column in it, channel, pixel row and column
        out[first : first + count] = x.reshape(count, out.size(1)).to(dtype)
        grid = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).reshape(
            rows // group, group, columns // group, group, 2
        )
        coordinates[first : first + count] = grid.transpose(1, 2).reshape(count, 2).to(coordinates)
    return out, coordinates
