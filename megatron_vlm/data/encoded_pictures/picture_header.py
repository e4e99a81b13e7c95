"""Size, format and orientation of an encoded picture, and whether the file is whole, in microseconds and without
decoding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from megatron_vlm.data.encoded_pictures import jpeg_segments, png_chunks, webp_chunks
from megatron_vlm.data.encoded_pictures.unusable import Defect, UnusablePicture, undecodable
from megatron_vlm.data.quarantine import Reason

PictureFormat: TypeAlias = Literal["jpeg", "png", "webp"]

#: where Pillow's own guard against decompression bombs stops: twice `PIL.Image.MAX_IMAGE_PIXELS`
MAX_PIXELS = 178_956_970


@dataclass(frozen=True, slots=True)
class PictureHeader:
    """What a picture file says of itself.

    Attributes:
        format: "jpeg", "png" or "webp".
        height, width: pixels, as they are stored: before `orientation` is applied.
        frames: more than 1 in an animation (WebP, APNG), whose first frame is what training sees.
        orientation: 1 to 8 as EXIF counts them; 1 is upright, from 5 on height and width change places when it is shown.
    """

    format: PictureFormat
    height: int
    width: int
    frames: int = 1
    orientation: int = 1

    @property
    def animated(self) -> bool:
        """Whether there is more than one frame."""
        return self.frames > 1

    @property
    def shown_size(self) -> tuple[int, int]:
        """(height, width) as a viewer shows it, upright."""
        return (self.width, self.height) if self.orientation >= 5 else (self.height, self.width)


def read_header(encoded: bytes) -> PictureHeader | None:
    """What the file says of itself; None where it says nothing that makes sense. Never raises.

    Reads a JPEG up to its first scan, and the chunk heads of a PNG or WebP. A header does not promise that the pixels can be
    decoded: see `find_structural_defect`.
    """
    try:
        return _parse(encoded, False)
    except UnusablePicture:
        return None


def find_structural_defect(encoded: bytes, max_pixels: int = MAX_PIXELS) -> Defect | None:
    """Whether a file is a whole JPEG, PNG or WebP, seen from its structure: None, or the reason and what was seen.

    Finds files that are cut short, that are no pictures or of another format, PNG files whose checksums are wrong, and
    pictures of more than `max_pixels` pixels or of none. What a camera or a server has appended behind the picture is no
    defect. Damage inside of compressed pixels is not seen: that takes decoding
    (`megatron_vlm.data.picture_check.find_defect`). Never raises, and takes time in proportion to the file at most.
    """
    header = inspect(encoded, max_pixels)
    return None if isinstance(header, PictureHeader) else header


def inspect(encoded: bytes, max_pixels: int = MAX_PIXELS) -> PictureHeader | Defect:
    """`find_structural_defect` and `read_header` in one pass: the header of a sound picture, or its defect."""
    try:
        header = _parse(encoded, True)
        if header.height == 0 or header.width == 0:
            raise undecodable(f"{header.width}x{header.height} pixels")
        if header.height * header.width > max_pixels:
            return Reason.OVERSIZED_IMAGE, f"{header.width}x{header.height} pixels, more than {max_pixels}"
        # A scan never has these two bytes, so a file that ends with them is whole, and nearly all do. For the others the
        # scans have to be walked through.
        if header.format == "jpeg" and not encoded.endswith(b"\xff\xd9"):
            jpeg_segments.require_end(encoded)
    except UnusablePicture as unusable:
        return unusable.defect
    return header


def _parse(encoded: bytes, checked: bool) -> PictureHeader:
    if encoded.startswith(b"\xff\xd8\xff"):
        height, width, orientation = jpeg_segments.read_frame(encoded)
        return PictureHeader("jpeg", height, width, 1, orientation)
    if encoded.startswith(png_chunks.SIGNATURE):
        return PictureHeader("png", *png_chunks.read_png_header(encoded, checked))
    if encoded.startswith(b"RIFF") and encoded[8:12] == b"WEBP":
        return PictureHeader("webp", *webp_chunks.read_webp_header(encoded))
    raise undecodable(f"{_name_of(encoded)}; JPEG, PNG and WebP are read")


#: (offset, bytes, name): what else is found under a picture's name
OTHER_FORMATS = (
    (0, b"GIF8", "a GIF file"),
    (0, b"BM", "a BMP file"),
    (4, b"ftypavif", "an AVIF file"),
    (4, b"ftypavis", "an AVIF file"),
    (4, b"ftyphe", "a HEIC file"),
    (4, b"ftypmif1", "a HEIF file"),
    (4, b"ftypmsf1", "a HEIF file"),
    (4, b"ftyp", "an MP4 or QuickTime file"),
    (0, b"II*\0", "a TIFF file"),
    (0, b"MM\0*", "a TIFF file"),
    (0, b"\xff\x0a", "a JPEG XL file"),
    (0, b"\0\0\0\x0cJXL ", "a JPEG XL file"),
    (0, b"\0\0\0\x0cjP  ", "a JPEG 2000 file"),
    (0, b"\xff\x4f\xff\x51", "a JPEG 2000 file"),
    (0, b"\0\0\1\0", "an icon file"),
    (0, b"8BPS", "a Photoshop file"),
    (0, b"%PDF", "a PDF file"),
    (0, b"\x1f\x8b", "a gzip file"),
)


def _name_of(encoded: bytes) -> str:
    if not encoded:
        return "an empty file"
    for offset, magic, name in OTHER_FORMATS:
        if encoded.startswith(magic, offset):
            return name
    start = encoded[:256].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith(b"<svg") or b"<svg" in start:
        return "an SVG file"
    if start.startswith(b"<"):
        return "an HTML or XML file"
    if not encoded[:256].strip(b"\0"):
        return "a file of zeros"
    return "no picture that is known"
