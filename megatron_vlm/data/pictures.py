"""Encoded pictures into pixels of the encoder's size."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
from PIL import Image

from megatron_vlm.data.encoded_pictures.decoded import set_upright
from megatron_vlm.data.encoded_pictures.picture_header import read_header
from megatron_vlm.data.picture_check import FORMATS
from megatron_vlm.errors import DataError


def decode_picture(encoded: bytes, size: int, where: str) -> npt.NDArray[np.uint8]:
    """A .jpg, .png or .webp file -> uint8 `[size, size, 3]`.

    It is turned upright as its EXIF says. Transparent pixels are laid on white; sides are scaled to `size` each (squashed,
    as SigLIP is trained), bicubic; a JPEG much larger than that is decoded at a fraction of its size. `where` names the
    picture in the error.

    Raises:
        DataError: the bytes are no picture.
    """
    try:
        picture: Image.Image = Image.open(io.BytesIO(encoded), formats=FORMATS)
        picture.draft("RGB", (size, size))
        header = read_header(encoded)
        if picture.mode == "I" or picture.mode.startswith("I;16"):
            # 16-bit grey: Pillow's own conversion would clip it to white
            picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
        if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
            picture = picture.convert("RGBA")
            ground = Image.new("RGBA", picture.size, "white")
            picture = Image.alpha_composite(ground, picture)
        picture = picture.convert("RGB")
        if header is not None:
            picture = set_upright(picture, header.orientation)
        if picture.size != (size, size):
            picture = picture.resize((size, size), Image.Resampling.BICUBIC)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{where}: the picture does not decode ({error}); preprocess the sources again") from None
    return np.asarray(picture, np.uint8)
