"""Pictures as the encoder takes them, which can be cut between pictures and joined."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from megatron_vlm.data.micro_batch_arrays import Sizes


@dataclass(frozen=True)
class PictureInput:
    """One or more pictures, one after another in reading order: squares of one size, or each of a size of its own.

    Attributes:
        count: how many.
        rows: placeholders of all of them together.
        pixels: uint8 `[count, size, size, 3]`, or `[bytes]` with `sizes`.
        sizes: (height, width) in pixels of each picture that keeps its aspect; None: all are squares of one size.
        features: in place of pixels, bf16 `[rows, numbers of a row]`: what a frozen encoder gave for them before, each
            picture's patches as the encoder orders them.
    """

    count: int
    rows: int
    pixels: Tensor | None = None
    sizes: Sizes | None = None
    features: Tensor | None = None

    @cached_property
    def costs(self) -> list[int]:
        """What each takes of the encoder's time, beside the others: its pixels where they differ."""
        return [1] * self.count if self.sizes is None else [height * width for height, width in self.sizes]

    @cached_property
    def row_counts(self) -> list[int]:
        """Placeholders of each."""
        if not self.count:
            return []
        unit = sum(self.costs) // self.rows  # of cost that becomes a row, where costs are pixels
        return [self.rows // self.count] * self.count if self.sizes is None else [cost // unit for cost in self.costs]

    @cached_property
    def _first_rows(self) -> list[int]:
        return [0, *itertools.accumulate(self.row_counts)]

    def rows_of(self, first: int, end: int) -> int:
        """Placeholders of the pictures from `first` to before `end`."""
        return self._first_rows[end] - self._first_rows[first]

    def part(self, first: int, end: int) -> PictureInput:
        """The pictures from `first` to before `end`: views, nothing is copied."""
        pixels, features = self.pixels, self.features
        if pixels is not None and self.sizes is not None:
            begin = 3 * sum(self.costs[:first])
            pixels = pixels[begin : begin + 3 * sum(self.costs[first:end])]
        elif pixels is not None:
            pixels = pixels[first:end]
        if features is not None:
            features = features[self._first_rows[first] : self._first_rows[end]]
        sizes = None if self.sizes is None else self.sizes[first:end]
        return PictureInput(end - first, self.rows_of(first, end), pixels, sizes, features)

    @staticmethod
    def joined(parts: Sequence[PictureInput]) -> PictureInput:
        """Those of all `parts`, which are alike in kind; of one it is itself."""
        if len(parts) == 1:
            return parts[0]
        pixels = [part.pixels for part in parts if part.pixels is not None]
        features = [part.features for part in parts if part.features is not None]
        sizes = [part.sizes for part in parts if part.sizes is not None]
        return PictureInput(
            sum(part.count for part in parts),
            sum(part.rows for part in parts),
            torch.cat(pixels) if pixels else None,
            tuple(itertools.chain.from_iterable(sizes)) if sizes else None,
            torch.cat(features) if features else None,
        )
