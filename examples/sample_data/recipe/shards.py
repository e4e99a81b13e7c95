"""WebDataset shards in img2dataset's form, with nothing in them that depends on who writes them or when."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Collection
from pathlib import Path

from recipe.captions import captions
from recipe.concepts import fraction
from recipe.pictures import SIDE, SPLITS, Picture

SHARD_BYTES = 1_800_000
"""A shard is closed before it would grow beyond this."""
_BLOCK = tarfile.BLOCKSIZE


def write_shards(pictures: Collection[Picture], folder: Path) -> list[Path]:
    """Write ``SPLIT-NNNNN.tar`` for every split; returns the files written, in order.

    A key is the split's digit, the shard (four digits) and the place in the shard (four digits), so keys are
    unique over all splits. Within a split the order is a shuffle by hash: every shard is a fair sample of it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    unspoken = {picture.concept.name for picture in pictures if picture.split == "heldout-concepts"}
    written = []
    for digit, split in enumerate(SPLITS):
        chosen = [picture for picture in pictures if picture.split == split]
        chosen.sort(key=lambda picture: fraction("order", picture.style, picture.concept.key))
        for shard, members in enumerate(_fill(chosen, digit, unspoken)):
            path = folder / f"{split}-{shard:05d}.tar"
            # USTAR: no extended headers, whose contents (process ids, sub-second times) vary between writers.
            with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
                for name, data in members:
                    entry = tarfile.TarInfo(name)
                    entry.size, entry.mtime, entry.mode = len(data), 0, 0o644
                    tar.addfile(entry, io.BytesIO(data))
            written.append(path)
    return written


def _fill(pictures: list[Picture], digit: int, unspoken: Collection[str]) -> list[list[tuple[str, bytes]]]:
    """Share out the pictures of a split over shards, each a list of (member name, bytes)."""
    shards: list[list[tuple[str, bytes]]] = [[]]
    size = index = 0
    for picture in pictures:
        key = f"{digit}{len(shards) - 1:04d}{index:04d}"
        members = _members(picture, key, unspoken)
        grown = sum(_BLOCK + -(-len(data) // _BLOCK) * _BLOCK for _, data in members)
        if shards[-1] and size + grown + tarfile.RECORDSIZE > SHARD_BYTES:
            shards.append([])
            size = index = 0
            members = _members(picture, f"{digit}{len(shards) - 1:04d}{index:04d}", unspoken)
        shards[-1].extend(members)
        size += grown
        index += 1
    return shards


def _members(picture: Picture, key: str, unspoken: Collection[str]) -> list[tuple[str, bytes]]:
    phrasings = captions(picture.concept, picture.style, unspoken if picture.split == "train" else ())
    sidecar = _sidecar(picture, key, phrasings)
    # A tar member is padded to blocks: the fourth phrasing is not worth a block that is otherwise empty.
    if len(phrasings) == 4 and len(sidecar) > _BLOCK:
        sidecar = _sidecar(picture, key, phrasings[:3])
    return [
        (f"{key}{picture.suffix}", picture.data),
        (f"{key}.txt", phrasings[0].encode()),
        (f"{key}.json", sidecar),
    ]


def _sidecar(picture: Picture, key: str, phrasings: list[str]) -> bytes:
    record = {
        "caption": phrasings[0],
        "key": key,
        "status": "success",
        "error_message": None,
        "width": SIDE,
        "height": SIDE,
        "original_width": SIDE,
        "original_height": SIDE,
        "sha256": picture.sha256,
        "captions": phrasings,
        "name": picture.concept.name,
        "group": picture.concept.group,
        "style": picture.style,
        "concept": picture.concept.key,
    }
    return json.dumps(record, separators=(",", ":"), ensure_ascii=False).encode()
