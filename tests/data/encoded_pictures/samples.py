"""Real encoded pictures of every kind that sources hold, small, and none of them of one colour."""

from __future__ import annotations

import functools
import io
import struct
import zlib
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms, PngImagePlugin

GPS_TEXT = b"somewhere north"
COMMENT = b"taken by nobody in particular"


def pixels(width: int = 40, height: int = 24, seed: int = 0) -> npt.NDArray[np.uint8]:
    """uint8 [height, width, 3]: coloured blocks of 8 by 8 with some noise, so that every coder has something to do."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(20, 236, (-(-height // 8), -(-width // 8), 3))
    spread = np.kron(blocks, np.ones((8, 8, 1)))[:height, :width]
    return (spread + rng.normal(0, 5, spread.shape)).clip(0, 255).astype(np.uint8)


def encode(picture: Image.Image | npt.NDArray[np.uint8], form: str = "PNG", **options: object) -> bytes:
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def decode(encoded: bytes) -> npt.NDArray[np.uint8]:
    with Image.open(io.BytesIO(encoded)) as picture:
        return np.asarray(picture)


def exif(orientation: int | None = None, telling: bool = True) -> Image.Exif:
    fields = Image.Exif()
    if telling:
        fields[0x010F] = "A camera"
        fields[0x8298] = COMMENT.decode()
        fields.get_ifd(0x8825)[0x001D] = GPS_TEXT.decode()
    if orientation is not None:
        fields[0x0112] = orientation
    return fields


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def raw_png(height: int, width: int, depth: int, colour: int, rows: bytes, interlace: int = 0) -> bytes:
    """A PNG of rows that have their filter bytes."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace)
    chunks = png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def interlaced_png(values: npt.NDArray[np.uint8]) -> bytes:
    """Adam7, which Pillow reads and does not write."""
    height, width, _ = values.shape
    rows = b""
    for top, left, down, right in (
        (0, 0, 8, 8),
        (0, 4, 8, 8),
        (4, 0, 8, 4),
        (0, 2, 4, 4),
        (2, 0, 4, 2),
        (0, 1, 2, 2),
        (1, 0, 2, 1),
    ):
        for row in values[top::down, left::right]:
            rows += b"\0" + row.tobytes() if row.size else b""
    return raw_png(height, width, 8, 2, rows, interlace=1)


def deep_png(values: npt.NDArray[np.uint8]) -> bytes:
    """16 bits a sample."""
    rows = b"".join(b"\0" + (row.astype(">u2") * 257).tobytes() for row in values)
    return raw_png(*values.shape[:2], 16, 2, rows)


@functools.cache  # it holds the second in which it was made
def srgb_profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def swapped_profile() -> bytes:
    """An RGB profile in which red and green have changed places: sRGB's, with two entries of its tag table exchanged."""
    profile = bytearray(srgb_profile())
    (count,) = struct.unpack_from(">I", profile, 128)
    entries = {bytes(profile[at : at + 4]): at for at in range(132, 132 + 12 * count, 12)}
    red, green = entries[b"rXYZ"], entries[b"gXYZ"]
    profile[red : red + 4], profile[green : green + 4] = b"gXYZ", b"rXYZ"
    at = profile.find("sRGB".encode("utf-16-be"))  # its description, or it is taken for sRGB
    assert at > 0
    profile[at : at + 8] = "test".encode("utf-16-be")
    return bytes(profile)


@lru_cache(maxsize=1)
def samples() -> dict[str, bytes]:
    """Name -> file, without metadata unless the name says so."""
    values = pixels()
    colour = Image.fromarray(values)
    alpha = np.dstack([values, pixels(seed=1)[:, :, 0]])
    frames = [Image.fromarray(pixels(seed=seed)) for seed in (2, 3)]
    animation = {"save_all": True, "append_images": frames, "duration": 10}
    palette = colour.quantize(17)
    return {
        "jpeg": encode(colour, "JPEG"),
        "jpeg grey": encode(colour.convert("L"), "JPEG"),
        "jpeg print": encode(colour.convert("CMYK"), "JPEG"),
        "jpeg progressive": encode(colour, "JPEG", progressive=True),
        "jpeg restarts": encode(colour, "JPEG", restart_marker_blocks=2),
        "jpeg full chroma": encode(colour, "JPEG", subsampling=0, quality=95),
        "jpeg one pixel": encode(values[:1, :1], "JPEG"),
        "jpeg exif": encode(colour, "JPEG", exif=exif(6), comment=COMMENT, xmp=COMMENT),
        "jpeg profile": encode(colour, "JPEG", icc_profile=srgb_profile()),
        "png": encode(colour, "PNG"),
        "png grey": encode(colour.convert("L"), "PNG"),
        "png bits": encode(colour.convert("1"), "PNG"),
        "png grey alpha": encode(Image.fromarray(alpha).convert("LA"), "PNG"),
        "png alpha": encode(alpha, "PNG"),
        "png palette": encode(palette, "PNG"),
        "png palette transparent": encode(palette, "PNG", transparency=3),
        "png colour transparent": encode(colour, "PNG", transparency=tuple(values[0, 0].tolist())),
        "png grey 16": encode(Image.fromarray(values[:, :, 0].astype(np.uint16) * 257), "PNG"),
        "png 16": deep_png(values),
        "png interlaced": interlaced_png(values),
        "png animated": encode(colour, "PNG", **animation),
        "png exif": encode(colour, "PNG", exif=exif(8), pnginfo=png_texts()),
        "webp": encode(colour, "WEBP"),
        "webp lossless": encode(colour, "WEBP", lossless=True),
        "webp alpha": encode(alpha, "WEBP"),
        "webp lossless alpha": encode(alpha, "WEBP", lossless=True),
        "webp animated": encode(colour, "WEBP", **animation),
        "webp exif": encode(colour, "WEBP", exif=exif(3), xmp=COMMENT, icc_profile=srgb_profile()),
        "webp one pixel": encode(values[:1, :1], "WEBP"),
    }


def png_texts() -> PngImagePlugin.PngInfo:
    texts = PngImagePlugin.PngInfo()
    texts.add_text("Comment", COMMENT.decode())
    texts.add_text("Description", COMMENT.decode() * 3, zip=True)
    texts.add_itxt("XML:com.adobe.xmp", COMMENT.decode())
    texts.add(b"tIME", struct.pack(">HBBBBB", 2024, 1, 2, 3, 4, 5))
    texts.add(b"prVt", COMMENT)
    return texts
