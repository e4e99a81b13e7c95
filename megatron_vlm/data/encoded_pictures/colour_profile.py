"""Colours in the sense of a file's own ICC profile, into sRGB, which models are trained on."""

from __future__ import annotations

import io
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image, ImageCms


def to_srgb(picture: Image.Image, profile: bytes | None) -> Image.Image:
    """Mode L, RGB, RGBA or CMYK -> L, RGB or RGBA in sRGB.

    Without a profile, with one that is sRGB, or with one that is damaged or not for pictures of this mode, values are taken
    for sRGB as they are (CMYK is converted without a profile then, as Pillow does).
    """
    transform = _transform(profile, picture.mode) if profile else None
    if transform is not None:
        from PIL import ImageCms

        converted = ImageCms.applyTransform(picture, transform)
        if converted is not None:
            return converted.convert("L") if picture.mode == "L" else converted  # grey stays grey
    return picture.convert("RGB") if picture.mode == "CMYK" else picture


@lru_cache(maxsize=16)  # building one takes longer than applying it, and a dataset has few different ones
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    from PIL import ImageCms

    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if mode in ("RGB", "RGBA") and ImageCms.getProfileDescription(source).startswith("sRGB"):
            return None
        target = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
        return ImageCms.buildTransform(source, target, mode, "RGBA" if mode == "RGBA" else "RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):  # no profile, or one for another kind of picture
        return None
