"""Scaling pictures of bytes, bicubic with antialiasing: Pillow's numbers, in a fraction of its time.

Across first, rounded to bytes, then down. Pillow, which does the same, chooses the order of the two by the sizes in newer
versions; one order here keeps a run's pixels the same whichever version is installed.

Not a torch operator: pictures are scaled where they are decoded, in processes that have no torch.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

from megatron_vlm.ops.native import native_operators

Pixels = npt.NDArray[np.uint8]
Box = tuple[float, float, float, float]


def resize_bicubic(pixels: Pixels, box: Box, out: Pixels) -> None:
    """Scale a part of a picture into `out`. Without the extension Pillow does it, to the same bits.

    Args:
        pixels: contiguous uint8 `[height, width, channels]`, 1 or 3 channels.
        box: (left, upper, right, lower) of the part, in pixels, fractions too. What lies beside it takes part at its edges,
            as if the whole had been scaled and then cropped.
        out: uint8 `[rows, columns, channels]`, whose rows are contiguous: a part of a larger picture will do.

    Raises:
        ValueError: shapes, types, strides or a box that do not fit.
    """
    _check(pixels, box, out)
    native = native_operators()
    if native is None:
        resize_bicubic_reference(pixels, box, out)
        return
    (height, width, channels), (rows, columns, _) = pixels.shape, out.shape
    address, stride = out.ctypes.data, out.strides[0]
    native.resize_bicubic(address, rows, columns, stride, pixels.ctypes.data, height, width, channels, box)


def resize_bicubic_reference(pixels: Pixels, box: Box, out: Pixels) -> None:
    """`resize_bicubic` by Pillow, one way after the other."""
    picture = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    (left, upper, right, lower), (rows, columns, _) = box, out.shape
    across = picture.resize((columns, picture.height), Image.Resampling.BICUBIC, (left, 0, right, picture.height))
    down = across.resize((columns, rows), Image.Resampling.BICUBIC, (0, upper, columns, lower))
    out[...] = np.asarray(down, np.uint8).reshape(out.shape)


def _check(pixels: Pixels, box: Box, out: Pixels) -> None:
    for name, array in (("pixels", pixels), ("out", out)):
        if array.dtype != np.uint8 or array.ndim != 3 or not all(array.shape):
            raise ValueError(f"{name} must be uint8 [height, width, channels], none of them 0: {array.dtype}{array.shape}")
    channels = pixels.shape[2]
    if channels not in (1, 3) or out.shape[2] != channels:
        raise ValueError(f"1 or 3 channels in both, not {channels} and {out.shape[2]}")
    if not pixels.flags.c_contiguous or out.strides[1:] != (channels, 1) or out.strides[0] < out.shape[1] * channels:
        raise ValueError("pixels must be contiguous, and each row of out")
    if not out.flags.writeable:
        raise ValueError("out is read-only")
    left, upper, right, lower = box
    if not (0 <= left < right <= pixels.shape[1] and 0 <= upper < lower <= pixels.shape[0]):
        raise ValueError(f"box {box} does not lie in a picture of {pixels.shape[1]} x {pixels.shape[0]}")
