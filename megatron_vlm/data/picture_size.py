"""How large a picture is, as its header says."""

from __future__ import annotations

import io
import warnings

from megatron_vlm.data.encoded_pictures.picture_header import read_header


def shown_size(encoded: bytes) -> tuple[int, int] | None:
    """(height, width) in pixels, turned upright as EXIF says; None for what is no picture. Nothing is decoded."""
    header = read_header(encoded)
    return picture_size(encoded) if header is None else header.shown_size


def picture_size(encoded: bytes) -> tuple[int, int] | None:
    """(height, width) in pixels of a .jpg, .png, .webp or other file that Pillow knows, not decoded; else None."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a large picture, which is none of a header's business
            with Image.open(io.BytesIO(encoded)) as picture:
                return picture.height, picture.width
    except Exception:  # Pillow raises whatever it likes on damaged headers, and DecompressionBombError on giant ones
        return None
