"""Pictures made smaller before they are stored: fewer pixels, another format, no metadata."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Literal, get_args

from megatron_vlm.data.encoded_pictures import colour_profile, decoded
from megatron_vlm.data.encoded_pictures.picture_header import PictureFormat, PictureHeader, inspect
from megatron_vlm.data.encoded_pictures.strip_metadata import strip_metadata
from megatron_vlm.data.encoded_pictures.unusable import UnusablePicture
from megatron_vlm.data.quarantine import Reason
from megatron_vlm.errors import ConfigError

TargetFormat = Literal["keep", "jpeg", "webp", "png"]

#: a JPEG is decoded at a fraction that leaves at least so many pixels for each that is wanted, and other formats are
#: averaged down to so many, before Lanczos: hardly to be told from Lanczos on all of them, and many times faster
REDUCING_GAP = 2.0

#: pixels of a side that the formats, or the libraries that write them, can have
LARGEST_SIDE = {"jpeg": 65_500, "webp": 16_383, "png": 2**31 - 1}


@dataclass(frozen=True, slots=True)
class Reencode:
    """What becomes of each picture. Equal bytes and settings give equal bytes (with the same versions of Pillow's
    libraries).

    Attributes:
        max_side: pixels of the longer side at most; pictures are shrunk to it and never enlarged. None: as they are.
        format: "keep" the file's own, or "jpeg", "webp" (lossy), "png".
        quality: 1 to 100, of JPEG and WebP.
        strip: take the metadata out of pictures that are not re-encoded; those that are have none.

    Raises:
        ConfigError: a value outside of these.
    """

    max_side: int | None = None
    format: TargetFormat = "keep"
    quality: int = 90
    strip: bool = False

    def __post_init__(self) -> None:
        if self.max_side is not None and self.max_side < 1:
            raise ConfigError(f"max_side is {self.max_side}: give a number of pixels, such as 1024, or leave it out")
        if self.format not in get_args(TargetFormat):
            raise ConfigError(f"format is {self.format!r}: give one of {', '.join(get_args(TargetFormat))}")
        if not 1 <= self.quality <= 100:
            raise ConfigError(f"quality is {self.quality}: give a number from 1 to 100, such as 90")

    def apply(self, encoded: bytes) -> bytes:
        """The picture as it shall be stored.

        One that is small enough and of the right format is not decoded: it keeps its encoded pixels, and with nothing to
        strip its bytes. Others are decoded (the first frame), shrunk, turned upright as their EXIF says, converted to sRGB
        where a colour profile is embedded, laid on white where JPEG cannot be transparent, and encoded. Palettes become RGB,
        CMYK too, 16 bits become 8.

        Raises:
            UnusablePicture: the file is damaged, oversized, or larger than the target format can be.
        """
        header = inspect(encoded)
        if not isinstance(header, PictureHeader):
            raise UnusablePicture(*header)
        target: PictureFormat = header.format if self.format == "keep" else self.format
        width, height = self._target_size(header)
        if target == header.format and (width, height) == (header.width, header.height):
            return strip_metadata(encoded) if self.strip else encoded
        if max(width, height) > LARGEST_SIDE[target]:
            limit = f"{width}x{height} pixels: {target} has {LARGEST_SIDE[target]} a side at most"
            raise UnusablePicture(Reason.OVERSIZED_IMAGE, limit)
        with decoded.refusing_by_name():
            return self._reencode(encoded, header.orientation, (width, height), target)

    def _target_size(self, header: PictureHeader) -> tuple[int, int]:
        longer = max(header.width, header.height)
        if self.max_side is None or longer <= self.max_side:
            return header.width, header.height
        # half up, in whole numbers: the same on every machine
        width, height = ((2 * side * self.max_side + longer) // (2 * longer) for side in (header.width, header.height))
        return max(1, width), max(1, height)

    def _reencode(self, encoded: bytes, orientation: int, size: tuple[int, int], target: PictureFormat) -> bytes:
        from PIL import Image

        least = round(size[0] * REDUCING_GAP), round(size[1] * REDUCING_GAP)
        picture = decoded.open_first_frame(encoded, None, least)
        profile = picture.info.get("icc_profile")
        if picture.size != size:
            picture = picture.resize(size, Image.Resampling.LANCZOS, reducing_gap=REDUCING_GAP)
        picture = colour_profile.to_srgb(decoded.set_upright(picture, orientation), profile)
        if target == "jpeg":
            picture = decoded.lay_on_white(picture)
        picture.info = {}  # or Pillow writes comments and profiles of the original again
        stream = io.BytesIO()
        options = {} if target == "png" else {"quality": self.quality}
        picture.save(stream, target.upper(), **options)
        return stream.getvalue()
