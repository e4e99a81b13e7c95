"""The pictures: one encoded file for a concept in a drawing style, and which pair goes into which split.

Splits ask two different questions of a trained model, and nothing but the asked-for thing is new in each:

* ``heldout-style``: concepts trained on in both training styles, in a style never seen (Fluent 3D);
* ``heldout-concepts``: styles seen in training (Noto), showing concepts of which no picture was trained on.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from megatron_vlm.errors import DataError
from recipe.concepts import Concept, code_points, fraction
from recipe.sources import FLUENT, NOTO, TWEMOJI, read_json

SPLITS = ("train", "heldout-style", "heldout-concepts")
SIDE = 64
"""Width and height of every picture, in pixels."""
TWEMOJI_SHARE = 0.52
"""Share of the training concepts that are drawn in Twemoji too: what fits the folder's size limit."""
HELDOUT_STYLE_SHARE = 0.62
"""Share of the concepts trained in both styles that are asked for again in Fluent 3D."""
SAME_DRAWING = 1.5
"""Mean absolute difference, in grey levels of 255, below which two drawings of a style count as one."""


@dataclass(frozen=True)
class Picture:
    """An encoded picture of a concept.

    Attributes:
        concept: what it shows.
        style: ``"noto"``, ``"twemoji"`` or ``"fluent-3d"``.
        split: one of :data:`SPLITS`.
        data: the file's bytes, ``SIDE`` x ``SIDE`` pixels.
        suffix: ``".png"`` or ``".webp"``.
    """

    concept: Concept
    style: str
    split: str
    data: bytes
    suffix: str

    @property
    def sha256(self) -> str:
        """Hexadecimal SHA-256 of ``data``."""
        return hashlib.sha256(self.data).hexdigest()


def load_pictures(concepts: Iterable[Concept], sources: Path) -> list[Picture]:
    """Every picture of the sample data, each in its split, in the order of ``concepts``.

    A concept is left out altogether when its Noto or Twemoji drawing is missing or repeats an earlier one.

    Raises:
        DataError: when a package is absent or a picture cannot be decoded or has another size.
    """
    noto = _emoji_datasource(NOTO.locate(sources), "google")
    twemoji = _emoji_datasource(TWEMOJI.locate(sources), "twitter")
    fluent = {code_points(file.stem): file for file in sorted((FLUENT.locate(sources) / "assets").glob("*.webp"))}
    pictures: list[Picture] = []
    earlier: list[np.ndarray] = []
    for concept in concepts:
        if concept.key not in noto or concept.key not in twemoji:
            continue
        drawings = np.stack([_thumbnail(noto[concept.key]), _thumbnail(twemoji[concept.key])])
        # [2, 16, 16, 3] against [n, 2, 16, 16, 3]: a reuse in either style makes the name a matter of luck.
        if earlier and np.abs(np.stack(earlier) - drawings).mean(axis=(2, 3, 4)).min() < SAME_DRAWING:
            continue
        earlier.append(drawings)
        noto_file, twemoji_file = noto[concept.key], twemoji[concept.key]
        if concept.held_out:
            pictures.append(Picture(concept, "noto", "heldout-concepts", _original(noto_file), ".png"))
            continue
        pictures.append(Picture(concept, "noto", "train", _original(noto_file), ".png"))
        if fraction("twemoji", concept.key) >= TWEMOJI_SHARE:
            continue
        pictures.append(Picture(concept, "twemoji", "train", _original(twemoji_file), ".png"))
        if concept.key in fluent and fraction("fluent", concept.key) < HELDOUT_STYLE_SHARE:
            pictures.append(Picture(concept, "fluent-3d", "heldout-style", _shrunk(fluent[concept.key]), ".webp"))
    return pictures


def _emoji_datasource(root: Path, vendor: str) -> dict[str, Path]:
    """Picture files by concept key, of the records that have a drawing by this vendor."""
    records = read_json(root / "emoji.json")
    folder = root / "img" / vendor / str(SIDE)
    return {code_points(record["unified"]): folder / record["image"] for record in records if record[f"has_img_{vendor}"]}


def _decode(file: Path) -> Image.Image:
    try:
        with Image.open(file) as image:
            return image.convert("RGBA")
    except (OSError, UnidentifiedImageError) as error:
        raise DataError(f"{file}: cannot be decoded ({error}); unpack its package again") from error


def _original(file: Path) -> bytes:
    if (size := _decode(file).size) != (SIDE, SIDE):
        raise DataError(f"{file}: is {size[0]} x {size[1]} pixels, not {SIDE} x {SIDE}; use the pinned package version")
    return file.read_bytes()


def _shrunk(file: Path) -> bytes:
    """The 256-pixel original at ``SIDE`` pixels: the same size as in training, so only the style differs."""
    buffer = io.BytesIO()
    small = _decode(file).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    small.save(buffer, "WEBP", quality=90, method=6)
    return buffer.getvalue()


def _thumbnail(file: Path) -> np.ndarray:
    """[16, 16, 3] float32 grey levels on a mid-grey ground, to compare drawings by."""
    image = _decode(file)
    ground = Image.new("RGBA", image.size, (128, 128, 128, 255))
    flat = Image.alpha_composite(ground, image).convert("RGB").resize((16, 16), Image.Resampling.BOX)
    return np.asarray(flat, dtype=np.float32)
