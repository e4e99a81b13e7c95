"""Whether a picture can be decoded, found out before training rather than during it."""

from __future__ import annotations

import io
import warnings

from megatron_vlm.data.encoded_pictures.picture_header import MAX_PIXELS, PictureHeader, inspect
from megatron_vlm.data.quarantine import Reason

FORMATS = ("JPEG", "PNG", "WEBP")


def check_picture(encoded: bytes, thorough: bool = True, max_pixels: int = MAX_PIXELS) -> PictureHeader | tuple[Reason, str]:
    """The header of a picture that training can use, or the reason why not and what was seen. Never raises.

    The structure of the file is always looked at (`encoded_pictures.picture_header.find_structural_defect`: microseconds,
    finds what is cut short or is no picture); with `thorough`, what passes is decoded as well (`find_defect`: milliseconds,
    finds damage inside of the compressed pixels, too). More than `max_pixels` pixels are oversized; above its default, which
    is Pillow's limit, pictures still fail to decode.
    """
    header = inspect(encoded, max_pixels)
    if thorough and isinstance(header, PictureHeader):
        return find_defect(encoded) or header
    return header


def find_defect(encoded: bytes) -> tuple[Reason, str] | None:
    """Decode a picture whole; None when that works, else the reason and what was seen.

    Pillow's `verify` is not enough: it passes JPEGs that end early. A picture is oversized where Pillow's own
    guard against decompression bombs stops, at 179 million pixels.
    """
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # large pictures and odd EXIF are no defects
            with Image.open(io.BytesIO(encoded), formats=FORMATS) as picture:
                picture.load()
    except Image.DecompressionBombError as error:
        return Reason.OVERSIZED_IMAGE, str(error)
    except Exception as error:  # decoders raise whatever they like on damaged input: SyntaxError, struct.error, ...
        return Reason.UNDECODABLE_IMAGE, f"{type(error).__name__}: {_without_addresses(error)}"
    return None


def _without_addresses(error: Exception) -> str:
    """Pillow prints the address of the stream it was given, which would make the quarantine differ between
    runs.
    """
    message = str(error)
    return "not a JPEG, PNG or WebP file" if message.startswith("cannot identify image file") else message
