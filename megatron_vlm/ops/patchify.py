"""Pictures into rows of normalised patches."""

from __future__ import annotations

import torch
from torch import Tensor


def patchify(pixels: Tensor, patch_size: int, mean: Tensor, std: Tensor, dtype: torch.dtype) -> Tensor:
    """uint8 `[n, height, width, 3]` -> `[n, patches, 3 * patch_size^2]` in `dtype`.

    Patches in reading order; inside a patch channel first, then row, then column, as the weight of a strided convolution
    flattens. A rest smaller than a patch at the right and lower edge is left out, as a convolution leaves it.
    `mean` and `std` are fp32 `[3]` in units of 1/255 of a pixel step, i.e. of pictures scaled to [0, 1].
    """
    n, height, width, _ = pixels.shape
    rows, columns = height // patch_size, width // patch_size
    x = pixels[:, : rows * patch_size, : columns * patch_size].float()
    x = (x - mean * 255.0) / (std * 255.0)
    x = x.reshape(n, rows, patch_size, columns, patch_size, 3).permute(0, 1, 3, 5, 2, 4)
    return x.reshape(n, rows * columns, 3 * patch_size * patch_size).to(dtype)
