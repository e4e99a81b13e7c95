"""Encoded pictures as Pillow's, in a mode that can be computed with."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from megatron_vlm.data.encoded_pictures.unusable import UnusablePicture, undecodable
from megatron_vlm.data.quarantine import Reason

if TYPE_CHECKING:
    from PIL import Image

FORMATS = ("JPEG", "PNG", "WEBP")

#: EXIF orientation -> name in `PIL.Image.Transpose` of what sets the stored pixels upright
UPRIGHT = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}


@contextmanager
def refusing_by_name() -> Iterator[None]:
    """Whatever Pillow raises in here, an `UnusablePicture` comes out; its warnings are about what is no defect."""
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (UnusablePicture, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise UnusablePicture(Reason.OVERSIZED_IMAGE, str(error)) from error
    except UnidentifiedImageError as error:  # its message has the address of the stream: another one each time
        raise undecodable("a header that Pillow cannot read") from error
    except Exception as error:  # decoders raise whatever they like on damaged input: SyntaxError, struct.error, ...
        raise undecodable(f"{type(error).__name__}: {error}") from error


def open_first_frame(encoded: bytes, mode: str | None, least: tuple[int, int]) -> Image.Image:
    """The first frame, in mode L, RGB, RGBA or CMYK, in the orientation that it is stored in. To be called inside of
    `refusing_by_name`.

    A JPEG may come at a half, quarter or eighth of its size where that is not below `least` (width, height), and in `mode`
    ("L" saves it from computing colours); others come whole.
    """
    from PIL import Image

    with Image.open(io.BytesIO(encoded), formats=FORMATS) as picture:
        picture.draft(mode, least)
        picture.load()
        if picture.mode == "I" or picture.mode.startswith("I;16"):
            # 16-bit grey: Pillow's own conversion would clip it to white
            grey = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
            grey.info["icc_profile"] = picture.info.get("icc_profile")
            return grey
        if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
            return picture.convert("RGBA")
        if picture.mode == "1":
            return picture.convert("L")
        if picture.mode in ("L", "RGB", "CMYK"):
            return picture
        return picture.convert("RGB")


def set_upright(picture: Image.Image, orientation: int) -> Image.Image:
    """The pixels as a viewer shows them; `picture` itself for orientation 1."""
    from PIL import Image

    return picture.transpose(Image.Transpose[UPRIGHT[orientation]]) if orientation in UPRIGHT else picture


def set_pixels_upright(pixels: npt.NDArray[np.uint8], orientation: int) -> npt.NDArray[np.uint8]:
    """`set_upright` for uint8 `[height, width, channels]`; contiguous."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def lay_on_white(picture: Image.Image) -> Image.Image:
    """RGBA without its alpha, as `decode_picture` shows it in training; other modes as they are."""
    from PIL import Image

    if picture.mode != "RGBA":
        return picture
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
