"""Encoded pictures into pixels of the encoder's size."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from megatron_vlm.config.steps import StepShape
from megatron_vlm.data.decoding.decoder import Decoder
from megatron_vlm.data.decoding.pillow_decoder import PillowDecoder
from megatron_vlm.data.picture_size import shown_size
from megatron_vlm.errors import DataError

_SQUASHED_BY_PILLOW = PillowDecoder("squash")


def picture_canvas(encoded: bytes, shape: StepShape) -> tuple[int, int]:
    """(height, width) in pixels in which a picture is shown: the square of `shape`, or one of the picture's own aspect."""
    picture = shape.picture
    if not picture.native:
        return shape.image_size, shape.image_size
    rows, columns = picture.grid(*(shown_size(encoded) or (0, 0)))
    return rows * picture.patch, columns * picture.patch


def decode_picture(
    encoded: bytes, size: int | tuple[int, int], where: str, decoder: Decoder | None = None
) -> npt.NDArray[np.uint8]:
    """A .jpg, .png or .webp file -> uint8 `[size, size, 3]`, or `[height, width, 3]` of such a size.

    It is turned upright as its EXIF says. Transparent pixels are laid on white; sides are scaled to `size` each (squashed,
    as SigLIP is trained), bicubic; a JPEG much larger than that is decoded at a fraction of its size. `where` names the
    picture in the error. `decoder` is the run's (`open_decoder`), which may resize otherwise; None: Pillow.

    Raises:
        DataError: the bytes are no picture.
    """
    height, width = (size, size) if isinstance(size, int) else size
    pixels = np.empty((height, width, 3), np.uint8)
    reasons = (decoder or _SQUASHED_BY_PILLOW).decode([encoded], [pixels])
    if reasons:
        raise DataError(f"{where}: the picture does not decode ({reasons[0]}); preprocess the sources again")
    return pixels
