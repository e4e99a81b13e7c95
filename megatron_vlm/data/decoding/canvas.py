"""An opened picture onto its canvas: scaled by its placement, padded, as bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from megatron_vlm.data.decoding.placement import Placement

Canvas: TypeAlias = npt.NDArray[np.uint8]
#: of several pictures: arrays of any shapes, or one `[n, height, width, 3]`
Canvases: TypeAlias = Sequence[Canvas] | Canvas
Colour: TypeAlias = tuple[int, int, int]

#: what a picture that does not decode looks like, and padding where it is asked for
GREY: Colour = (128, 128, 128)


def lay(picture: Image.Image, placement: Placement, padding: Colour, out: Canvas) -> None:
    """Write an upright picture of mode L or RGB into `out`, uint8 `[height, width, 3]`, bicubic with antialiasing.

    The picture may have been decoded at a fraction of `placement.size`.
    """
    height, width = placement.scaled
    box = placement.box_in(picture.height, picture.width)
    pixels = np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC, box), np.uint8)
    lay_scaled(pixels, placement, padding, out)


def lay_scaled(pixels: npt.NDArray[np.uint8], placement: Placement, padding: Colour, out: Canvas) -> None:
    """`lay` for what has `placement.scaled` already: uint8 `[height, width]`, grey, or `[height, width, 3]`."""
    height, width = placement.scaled
    row, column = placement.offset
    if (height, width) != out.shape[:2]:
        out[...] = padding
    out[row : row + height, column : column + width] = pixels[..., None] if pixels.ndim == 2 else pixels
