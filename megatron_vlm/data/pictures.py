"""Encoded pictures into pixels of the encoder's size."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from megatron_vlm.data.decoding.decoder import Decoder
from megatron_vlm.data.decoding.pillow_decoder import PillowDecoder
from megatron_vlm.errors import DataError

_SQUASHED_BY_PILLOW = PillowDecoder("squash")


def decode_picture(encoded: bytes, size: int, where: str, decoder: Decoder | None = None) -> npt.NDArray[np.uint8]:
    """A .jpg, .png or .webp file -> uint8 `[size, size, 3]`.

    It is turned upright as its EXIF says. Transparent pixels are laid on white; sides are scaled to `size` each (squashed,
    as SigLIP is trained), bicubic; a JPEG much larger than that is decoded at a fraction of its size. `where` names the
    picture in the error. `decoder` is the run's (`open_decoder`), which may resize otherwise; None: Pillow.

    Raises:
        DataError: the bytes are no picture.
    """
    pixels = np.empty((size, size, 3), np.uint8)
    reasons = (decoder or _SQUASHED_BY_PILLOW).decode([encoded], [pixels])
    if reasons:
        raise DataError(f"{where}: the picture does not decode ({reasons[0]}); preprocess the sources again")
    return pixels
