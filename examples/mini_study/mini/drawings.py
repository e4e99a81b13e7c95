"""Every concept in up to six drawing styles, 64 x 64 pixels on white. OpenMoji's style is never trained on."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image
from recipe.concepts import code_points
from recipe.sources import read_json

from megatron_vlm.errors import UserError
from mini.concepts import Concept
from mini.sources import EMOJIONE, FLUENT, GOOGLE, NOTO_V1, OPENMOJI, TWITTER

SIDE = 64
HELD_OUT_STYLE = "openmoji"
TRAINING_STYLES = ("noto", "twemoji", "fluent-3d", "noto-v1", "emojione")
STYLES = (*TRAINING_STYLES, HELD_OUT_STYLE)
Split = Literal["train", "heldout-style", "heldout-concepts", "heldout-both"]
SPLITS: tuple[Split, ...] = ("train", "heldout-style", "heldout-concepts", "heldout-both")


@dataclass(frozen=True)
class Drawing:
    """A concept in a style. `pixels`: uint8 [64, 64, 3]."""

    concept: Concept
    style: str
    pixels: npt.NDArray[np.uint8]

    @property
    def split(self) -> Split:
        if self.style == HELD_OUT_STYLE:
            return "heldout-both" if self.concept.unseen else "heldout-style"
        return "heldout-concepts" if self.concept.unseen else "train"

    @property
    def name(self) -> str:
        """Of its file, without suffix: unique."""
        return f"{self.concept.key}-{self.style}".lower()


def load_drawings(concepts: Iterable[Concept], sources: Path) -> list[Drawing]:
    """All that the six packages have of these concepts, by concept and style."""
    files: Mapping[str, Mapping[str, Path | str]] = {
        "noto": _datasource(GOOGLE.locate(sources), "google"),
        "twemoji": _datasource(TWITTER.locate(sources), "twitter"),
        "fluent-3d": {code_points(f.stem): f for f in (FLUENT.locate(sources) / "assets").glob("*.webp")},
        "openmoji": {code_points(f.stem): f for f in (OPENMOJI.locate(sources) / "color" / "svg").glob("*.svg")},
        "noto-v1": _icons(NOTO_V1.locate(sources)),
        "emojione": _icons(EMOJIONE.locate(sources)),
    }
    drawings = []
    for concept in concepts:
        for style in STYLES:
            key = _slug(concept.name) if style in ("noto-v1", "emojione") else concept.key
            if (found := files[style].get(key)) is not None:
                drawings.append(Drawing(concept, style, on_white(_image(found))))
    return drawings


def on_white(image: Image.Image, side: int = SIDE) -> npt.NDArray[np.uint8]:
    """uint8 [side, side, 3]: the whole picture, its longer side `side`, in the middle of a white square."""
    image = image.convert("RGBA")
    scale = side / max(image.size)
    image = image.resize(tuple(max(1, round(n * scale)) for n in image.size), Image.Resampling.LANCZOS)
    ground = Image.new("RGB", (side, side), "white")
    ground.paste(image, tuple((side - n) // 2 for n in image.size), image)
    return np.asarray(ground)


def render_svg(text: str, side: int = SIDE) -> Image.Image:
    """
    Raises:
        UserError: resvg is not installed.
    """
    try:
        import resvg_py
    except ImportError:
        raise UserError("the mini study's drawings are partly SVG: pip install 'megatron_vlm[mini-study]'") from None
    drawn = resvg_py.svg_to_bytes(svg_string=text, width=side, height=side, skip_system_fonts=True)
    return Image.open(io.BytesIO(bytes(drawn)))


def _image(found: Path | str) -> Image.Image:
    if isinstance(found, str):
        return render_svg(found)
    if found.suffix == ".svg":
        return render_svg(found.read_text(encoding="utf-8"))
    return Image.open(found)


def _datasource(root: Path, vendor: str) -> dict[str, Path]:
    records = [record for record in read_json(root / "emoji.json") if record[f"has_img_{vendor}"]]
    return {code_points(r["unified"]): root / "img" / vendor / "64" / r["image"] for r in records}


def _icons(root: Path) -> dict[str, str]:
    """SVG text by the slug of the name, of an Iconify collection."""
    collection = read_json(root / "icons.json")

    def text(icon: Mapping[str, object]) -> str:
        width, height = (icon.get(side, collection.get(side, 16)) for side in ("width", "height"))
        spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
        return f'<svg {spaces} viewBox="0 0 {width} {height}">{icon["body"]}</svg>'

    # one collection says flag-for-japan, the other flag-for-flag-japan; aliases are older names
    icons = {re.sub(r"^flag-for-(flag-)?", "flag-", name): text(icon) for name, icon in collection["icons"].items()}
    for alias, target in collection.get("aliases", {}).items():
        if set(target) == {"parent"} and target["parent"] in collection["icons"]:
            icons.setdefault(alias, text(collection["icons"][target["parent"]]))
    return icons


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.replace("'", "")).strip("-")


def by_concept(drawings: Iterable[Drawing]) -> dict[tuple[str, str], Drawing]:
    """By (concept's key, style)."""
    return {(d.concept.key, d.style): d for d in drawings}


def of_split(drawings: Iterable[Drawing], split: Split) -> Iterator[Drawing]:
    return (d for d in drawings if d.split == split)
