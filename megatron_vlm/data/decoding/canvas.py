"""An opened picture onto its canvas: scaled by its placement, padded, as bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from megatron_vlm.data.decoding.placement import Placement
from megatron_vlm.ops.resize import resize_bicubic

Canvas: TypeAlias = npt.NDArray[np.uint8]
#: of several pictures: arrays of any shapes, or one `[n, height, width, 3]`
Canvases: TypeAlias = Sequence[Canvas] | Canvas
Colour: TypeAlias = tuple[int, int, int]

#: what a picture that does not decode looks like, and padding where it is asked for
GREY: Colour = (128, 128, 128)


def lay(pixels: npt.NDArray[np.uint8], placement: Placement, padding: Colour, out: Canvas) -> None:
    """Write an upright picture, uint8 `[height, width, 3]`, or `[height, width, 1]` where it is grey, into `out`, uint8
    `[height, width, 3]`: bicubic with antialiasing.

    The picture may have been decoded at a fraction of `placement.size`.
    """
    box = placement.box_in(*pixels.shape[:2])
    if pixels.shape[2] == 3:
        resize_bicubic(pixels, box, _part(placement, padding, out))
        return
    grey = np.empty((*placement.scaled, 1), np.uint8)
    resize_bicubic(pixels, box, grey)
    lay_scaled(grey, placement, padding, out)


def lay_scaled(pixels: npt.NDArray[np.uint8], placement: Placement, padding: Colour, out: Canvas) -> None:
    """`lay` for what has `placement.scaled` already."""
    _part(placement, padding, out)[...] = pixels


def _part(placement: Placement, padding: Colour, out: Canvas) -> Canvas:
    """The part of the canvas that the picture covers; what lies beside it is padded."""
    height, width = placement.scaled
    row, column = placement.offset
    if (height, width) != out.shape[:2]:
        out[...] = padding
    return out[row : row + height, column : column + width]
