"""Counts by powers of two, of a dataset that is too long to remember."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from megatron_vlm.data.indexed_format import IMAGE_MODE, TEXT_MODE

BINS = 64


@dataclass
class Histogram:
    """How many values lie in [2^k, 2^(k+1)), and how many are 0."""

    counts: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))

    def add(self, values: npt.NDArray[Any]) -> None:
        bins = np.zeros(len(values), np.int64)
        positive = values > 0
        # frexp is exact where log2 is not: 2^k is 0.5 x 2^(k+1)
        bins[positive] = np.frexp(values[positive].astype(np.float64))[1]
        self.counts += np.bincount(bins, minlength=BINS)

    def describe(self) -> dict[str, int]:
        """ "low-high" of each bin that has any -> count."""
        names = ["0", "1", *(f"{2**k}-{2 ** (k + 1) - 1}" for k in range(1, BINS - 1))]
        return {name: int(count) for name, count in zip(names, self.counts, strict=True) if count}


@dataclass
class Statistics:
    """Of the documents of one dataset."""

    documents: int = 0
    tokens: int = 0
    images: int = 0
    tokens_a_document: Histogram = field(default_factory=Histogram)
    images_a_document: Histogram = field(default_factory=Histogram)
    longer_side: Histogram | None = field(default_factory=Histogram)

    def add(
        self,
        lengths: npt.NDArray[np.int32],
        modes: npt.NDArray[np.int8],
        facts: npt.NDArray[np.int32] | None,
        sequences: npt.NDArray[np.integer[Any]],
    ) -> None:
        """Whole documents, by the columns of `megatron_vlm.data.building.part`; without facts, sizes are not counted, and
        `longer_side` is None where there are pictures."""
        ends = np.cumsum(sequences, dtype=np.int64)
        tokens = _by_document(np.where(modes == TEXT_MODE, lengths, 0), ends)
        images = _by_document(modes == IMAGE_MODE, ends)
        self.documents += len(sequences)
        self.tokens += int(tokens.sum())
        self.images += int(images.sum())
        self.tokens_a_document.add(tokens)
        self.images_a_document.add(images)
        if facts is None and images.any():
            self.longer_side = None  # a histogram of some of the pictures would be wrong
        if facts is not None and self.longer_side is not None:
            self.longer_side.add(facts[modes == IMAGE_MODE].max(axis=1, initial=0))

    def describe(self) -> dict[str, Any]:
        """Of each histogram that is known, the counts."""
        sides = {} if self.longer_side is None else {"longer_side_of_a_picture": self.longer_side.describe()}
        return {
            "tokens_a_document": self.tokens_a_document.describe(),
            "images_a_document": self.images_a_document.describe(),
            **sides,
        }


def _by_document(values: npt.NDArray[Any], ends: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    # Differences of a running sum, because np.add.reduceat gives an empty document its neighbour's value.
    running = np.zeros(len(values) + 1, np.int64)
    np.cumsum(values, dtype=np.int64, out=running[1:])
    return np.diff(running[np.concatenate([[0], ends])])
