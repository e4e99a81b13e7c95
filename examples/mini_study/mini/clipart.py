"""Captioned clip art: Tux Paint's stamps, many of them cut-out photographs, and OpenClipart's drawings."""

from __future__ import annotations

import html
import io
import re
import struct
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from mini.drawings import on_white, render_svg
from mini.sources import CLIP_PNG, CLIP_SVG, TUXPAINT

MOST_PIXELS = 4_000_000
#: folders of OpenClipart whose titles do not say what is seen
_UNTITLED = frozenset({"special", "unsorted", "logos", "buttons"})
_TITLE = re.compile(r"[A-Za-z][A-Za-z ,'().&-]{0,59}")


@dataclass(frozen=True)
class Clip:
    """A picture with a caption. `pixels`: uint8 [64, 64, 3]."""

    name: str
    caption: str
    pixels: npt.NDArray[np.uint8]


def load_stamps(sources: Path) -> list[Clip]:
    """Stamps but for letters and signs; the caption is the first line of the `.txt` beside."""
    root = TUXPAINT.locate(sources) / "usr" / "share" / "tuxpaint" / "stamps"
    clips = []
    for text in sorted(root.rglob("*.txt")):
        if text.relative_to(root).parts[0] == "symbols":
            continue
        caption = text.read_text(encoding="utf-8").partition("\n")[0].strip()
        picture = next((text.with_suffix(s) for s in (".png", ".svg") if text.with_suffix(s).is_file()), None)
        if picture is None or not caption or (image := _opened(picture)) is None:
            continue
        clips.append(Clip("tux-" + "-".join(text.relative_to(root).with_suffix("").parts), caption, on_white(image)))
    return clips


def load_clip_art(sources: Path) -> list[Clip]:
    """Drawings declared to be in the public domain, whose titles are words that no more than four share."""
    svg, png = (s.locate(sources) / "usr" / "share" / "openclipart" / k for s, k in ((CLIP_SVG, "svg"), (CLIP_PNG, "png")))
    titled = []
    for file in sorted(svg.rglob("*.svg")):
        path = file.relative_to(svg).with_suffix("")
        said = re.search(r"<(?:\w+:)?metadata.*?</(?:\w+:)?metadata>", file.read_text("utf-8", "replace"), re.DOTALL)
        metadata = said.group(0) if said else ""
        titled.append((path, _tag(metadata, "title"), "publicdomain" in metadata.lower()))
    shared = Counter(title.lower() for _, title, _ in titled)
    clips = []
    for path, title, free in titled:
        words = re.sub(r"\s*\d+$", "", re.sub(r"[_\-]+", " ", title)).strip()
        picture = (png / path).with_suffix(".png")
        if not free or path.parts[0] in _UNTITLED or "icons" in path.parts or shared[title.lower()] > 4:
            continue
        if not _TITLE.fullmatch(words) or not picture.is_file() or (image := _opened(picture)) is None:
            continue
        clips.append(Clip("clip-" + "-".join(path.parts), words.lower(), on_white(image)))
    return clips


def _tag(metadata: str, name: str) -> str:
    found = re.search(rf"<(?:\w+:)?{name}\b[^>]*>(.*?)</(?:\w+:)?{name}>", metadata, re.DOTALL)
    return html.unescape(re.sub(r"<[^>]+>", " ", found.group(1))).strip() if found else ""


def _opened(path: Path) -> Image.Image | None:
    """None for what is damaged or too large to be worth its time."""
    try:
        if path.suffix == ".svg":
            return render_svg(path.read_text(encoding="utf-8", errors="replace"), 128)
        data = path.read_bytes()
        width, height = struct.unpack_from(">II", data, 16)  # of a PNG's first chunk; some here claim 600 million pixels
        if width * height > MOST_PIXELS:
            return None
        image = Image.open(io.BytesIO(data))
        image.load()
        return image
    except (UnidentifiedImageError, OSError, ValueError, struct.error):
        return None
