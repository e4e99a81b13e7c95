"""Which pictures of a dataset are to be encoded, each once, and where in the file of features each has its place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from megatron_vlm.config.picture_rows import PictureRows
from megatron_vlm.data.encoded_pictures.picture_hash import KEY_BYTES, sha256_key
from megatron_vlm.data.indexed_format import IMAGE_MODE
from megatron_vlm.data.indexed_reader import IndexedReader
from megatron_vlm.data.kept_features.feature_facts import ELEMENT
from megatron_vlm.data.sequence_facts import open_sequence_facts
from megatron_vlm.errors import DataError

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class PictureBlocks:
    """
    Attributes:
        first: int64 `[blocks]`, the first sequence that holds each picture, ascending: blocks in the order of the .bin.
        sizes: int64 `[blocks, 2]`, (height, width) in pixels in which each is shown.
        bounds: int64 `[blocks + 1]`, in bytes: where each block begins, then the end of the .bin.
        lengths: int32 `[sequences]`, elements of every sequence of the file of features.
        pointers: int64 `[sequences]`, where each begins, in bytes.
    """

    first: Integers
    sizes: Integers
    bounds: Integers
    lengths: npt.NDArray[np.int32]
    pointers: Integers

    @property
    def pictures(self) -> int:
        """Those of the dataset, repeated ones counted again."""
        return int((self.lengths > 0).sum())


def picture_blocks(
    dataset: IndexedReader,
    rows: PictureRows,
    image_size: int,
    patch_size: int,
    width: int,
    advance: Callable[[int], object] = lambda count: None,
) -> PictureBlocks:
    """Every picture is read and hashed; `advance` is told of how many.

    Args:
        rows: of a picture; where pictures keep their aspect, its grid is asked for.
        image_size: side of all pictures otherwise.
        width: features of a patch.

    Raises:
        DataError: there is no picture, or their sizes are asked for and not known.
    """
    dataset.verify()
    shown = np.flatnonzero(dataset.modes == IMAGE_MODE).astype(np.int64)
    if not len(shown):
        raise DataError(f"{dataset.prefix} holds no picture, so there is nothing to encode")
    keys = np.empty((len(shown), KEY_BYTES), np.uint8)
    for number, sequence in enumerate(shown.tolist()):
        keys[number] = np.frombuffer(sha256_key(dataset.image_bytes(sequence)), np.uint8)
        advance(1)
    _, firsts, which = np.unique(keys.view(f"V{KEY_BYTES}").reshape(-1), return_index=True, return_inverse=True)
    order = np.argsort(firsts)  # of the unique pictures, by where they are met first
    block_of = np.empty_like(order)
    block_of[order] = np.arange(len(order))
    first = shown[firsts[order]]
    sizes = _sizes(dataset, first, rows, image_size)
    elements = (sizes[:, 0] // patch_size) * (sizes[:, 1] // patch_size) * width
    bounds = np.concatenate([np.zeros(1, np.int64), np.cumsum(elements * ELEMENT.itemsize)])
    blocks = block_of[which.reshape(-1)]
    lengths = np.zeros(dataset.sequence_count, np.int32)
    lengths[shown] = elements[blocks]
    pointers = np.zeros(dataset.sequence_count, np.int64)
    pointers[shown] = bounds[blocks]
    return PictureBlocks(first, sizes, bounds, lengths, pointers)


def _sizes(dataset: IndexedReader, sequences: Integers, rows: PictureRows, image_size: int) -> Integers:
    if not rows.native:
        return np.full((len(sequences), 2), image_size, np.int64)
    facts = open_sequence_facts(dataset.prefix, dataset.sequence_count)
    if facts is None:
        raise DataError(
            f"{dataset.prefix} does not say how large its pictures are (it has no {dataset.prefix.name}.sequences.npy), "
            f"which data.pictures.resize: native needs; preprocess the sources again"
        )
    grids = [rows.grid(int(height), int(width)) for height, width in facts[sequences].tolist()]
    return np.array(grids, np.int64).reshape(-1, 2) * rows.patch
