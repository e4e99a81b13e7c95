"""Decoding JPEGs by simplejpeg, which calls libjpeg-turbo on the bytes where they lie; all else by Pillow."""

from __future__ import annotations

from collections.abc import Sequence

from megatron_vlm.config.pictures import Resize
from megatron_vlm.data.decoding.canvas import GREY, Canvas, Canvases, Colour, lay
from megatron_vlm.data.decoding.pillow_decoder import PillowDecoder
from megatron_vlm.data.decoding.placement import place
from megatron_vlm.data.encoded_pictures.decoded import set_pixels_upright
from megatron_vlm.data.encoded_pictures.picture_header import MAX_PIXELS, PictureHeader, read_header

#: colours that libjpeg-turbo turns into RGB or grey; those of print are Pillow's
COLOURS = {"YCbCr": "RGB", "RGB": "RGB", "Gray": "GRAY"}


class JpegDecoder:
    """See `megatron_vlm.data.decoding.decoder.Decoder`.

    Pillow is the judge of whatever libjpeg-turbo has a word about: both decoders refuse the same pictures, and show a
    damaged one that still decodes alike.

    Raises:
        ImportError: simplejpeg is not installed.
    """

    name = "simplejpeg"

    def __init__(self, resize: Resize, padding: Colour = GREY) -> None:
        import simplejpeg

        self._header, self._pixels = simplejpeg.decode_jpeg_header, simplejpeg.decode_jpeg
        self.resize, self.padding = resize, padding
        self._others = PillowDecoder(resize, padding)

    def decode(self, encoded: Sequence[bytes], out: Canvases) -> dict[int, str]:
        reasons = {}
        for number, (data, canvas) in enumerate(zip(encoded, out, strict=True)):
            header = read_header(data)
            if header is None or header.format != "jpeg" or not self._taken(data, header, canvas):
                reason = self._others.decode_one(data, canvas)
                if reason is not None:
                    reasons[number] = reason
        return reasons

    def _taken(self, encoded: bytes, header: PictureHeader, out: Canvas) -> bool:
        """Decode into `out`; False where Pillow has to see to it."""
        if header.height * header.width > MAX_PIXELS:
            return False
        placement = place(self.resize, header.shown_size, out.shape[:2])
        reduction = placement.reduction
        # the least sides for which this fraction, and none below it, is large enough; 0: whole
        height, width = (-(-side // reduction) if reduction > 1 else 0 for side in (header.height, header.width))
        try:
            colours = COLOURS.get(self._header(encoded)[2])
            if colours is None:
                return False
            pixels = self._pixels(encoded, colorspace=colours, min_height=height, min_width=width)
        except ValueError:  # damage, and what it only warns of
            return False
        lay(set_pixels_upright(pixels, header.orientation), placement, self.padding, out)
        return True
