"""Decoding by Pillow: every format, JPEGs at a fraction of their size where that is enough."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from megatron_vlm.config.pictures import Resize
from megatron_vlm.data.decoding.canvas import GREY, Canvas, Canvases, Colour, lay
from megatron_vlm.data.decoding.placement import place
from megatron_vlm.data.encoded_pictures.decoded import FORMATS, refusing_by_name, set_upright
from megatron_vlm.data.encoded_pictures.picture_header import read_header
from megatron_vlm.data.encoded_pictures.unusable import UnusablePicture

#: of what a library says of a damaged picture; some quote it at length
MOST_OF_A_REASON = 200


class PillowDecoder:
    """See `megatron_vlm.data.decoding.decoder.Decoder`. It is also what the others hand over what they cannot decode."""

    name = "pillow"

    def __init__(self, resize: Resize, padding: Colour = GREY) -> None:
        self.resize, self.padding = resize, padding

    def decode(self, encoded: Sequence[bytes], out: Canvases) -> dict[int, str]:
        found = ((number, self.decode_one(*pair)) for number, pair in enumerate(zip(encoded, out, strict=True)))
        return {number: reason for number, reason in found if reason is not None}

    def decode_one(self, encoded: bytes, out: Canvas) -> str | None:
        """One picture; why it does not decode, or None."""
        try:
            with refusing_by_name():
                self._decode(encoded, out)
        except UnusablePicture as unusable:
            out[...] = GREY
            return unusable.detail[:MOST_OF_A_REASON]
        return None

    def _decode(self, encoded: bytes, out: Canvas) -> None:
        header = read_header(encoded)
        with Image.open(io.BytesIO(encoded), formats=FORMATS) as opened:
            orientation = 1 if header is None else header.orientation
            width, height = opened.size
            placement = place(self.resize, (width, height) if orientation >= 5 else (height, width), out.shape[:2])
            if (reduction := placement.reduction) > 1:
                opened.draft(None, (width // reduction, height // reduction))
            lay(np.asarray(set_upright(as_rgb(opened), orientation)), placement, self.padding, out)


def as_rgb(picture: Image.Image) -> Image.Image:
    """The pixels in mode RGB, transparent ones laid on white, 16-bit grey by its upper eight bits."""
    if picture.mode == "I" or picture.mode.startswith("I;16"):
        # Pillow's own conversion would clip it to white
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        ground = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(ground, picture)
    return picture.convert("RGB")
