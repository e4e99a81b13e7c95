"""Prompts out of a file, with the pictures that stand before them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_vlm.data.decoding.decoder import open_decoder
from megatron_vlm.data.pictures import decode_picture, picture_canvas
from megatron_vlm.data.records import Unit
from megatron_vlm.data.sources.json_files import read_objects
from megatron_vlm.data.sources.opening import input_file
from megatron_vlm.data.sources.picture_store import picture_store, read_picture
from megatron_vlm.data.sources.unusable import Unusable
from megatron_vlm.errors import DataError
from megatron_vlm.evaluation.generation import Generator, Prompt
from megatron_vlm.evaluation.scorer import Scorer


def read_prompts(path: Path) -> list[dict[str, Any]]:
    """Objects with `prompt`, and if need be `image` (one name) or `images` (several), of which an empty one counts for none.

    Raises:
        DataError: the file cannot be read, or a line that is no such object, by its number.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    file = input_file(str(path))
    records = []
    for number, found in enumerate(read_objects(Unit(file.url, 0, file.size, file.size))):
        if isinstance(found.value, Unusable):
            raise DataError(f"{path}, record {number}: {found.value}")
        record = {"prompt": "", **found.value}
        if not isinstance(record["prompt"], str) or not isinstance(record.get("images", []), list):
            raise DataError(f"{path}, record {number}: 'prompt' must be a text, and 'images' a list of names")
        if record.get("image") and record.get("images"):
            raise DataError(f"{path}, record {number}: has both 'image' and 'images'; put all names into 'images'")
        records.append(record)
    if not records:
        raise DataError(f"{path}: holds no prompt")
    return records


def read_image_files(paths: Sequence[Path]) -> list[bytes]:
    """Raises DataError where one cannot be read."""
    encoded = []
    for path in paths:
        try:
            encoded.append(path.read_bytes())
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    return encoded


def prompts_of(
    scorer: Scorer, generator: Generator, records: Sequence[dict[str, Any]], place: str, encoded: Sequence[bytes] = ()
) -> list[Prompt]:
    """The prompts of records.

    Args:
        place: folder or tar of the pictures that records name.
        encoded: pictures that stand before every prompt.

    Raises:
        DataError: a picture that is not there or does not decode, with the number of its record.
    """
    store = picture_store(place) if place else None
    decoder = open_decoder(scorer.config.data.pictures, scorer.config.model.vision.pixel_mean)
    prompts = []
    for number, record in enumerate(records):
        named = record.get("images") or ([record["image"]] if record.get("image") else [])
        pictures = []
        if scorer.decodes:
            try:
                found = [*encoded, *(read_picture(name, store) for name in named)]
            except Unusable as defect:
                raise DataError(f"prompt {number}: {defect}") from None
            sizes = [picture_canvas(data, scorer.shape) for data in found]
            pictures = [
                decode_picture(data, size, f"prompt {number}", decoder) for data, size in zip(found, sizes, strict=True)
            ]
        prompts.append(generator.prompt(record["prompt"], pictures, len(encoded) + len(named)))
    return prompts
