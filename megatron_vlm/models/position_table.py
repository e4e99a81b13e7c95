"""Learned positions of a square grid of patches, interpolated where pictures have another grid."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def bicubic_matrix(old: int, new: int, antialias: bool) -> Tensor:
    """fp32 `[new, old]`: the weights with which torch's bicubic interpolation makes `new` samples out of `old`."""
    # one channel a sample, which is one there and zero elsewhere: its interpolation is that sample's column. Samples lie
    # along the width: torch's antialiased interpolation of pictures one pixel wide gives other numbers along the height
    basis = torch.eye(old).view(1, old, 1, old)
    columns = F.interpolate(basis, size=(1, new), mode="bicubic", align_corners=False, antialias=antialias)
    return columns[0, :, 0, :].transpose(0, 1)


class PositionTable(torch.nn.Module):
    """A row for each patch of a `grid` x `grid` picture in reading order, before them the class token's if there is one.

    Another grid is interpolated bicubically, as the families' own code does: sample centres aligned at the borders of the
    picture (`align_corners` off). The class token's row stays. Both passes, along rows and along columns, are products with
    `bicubic_matrix`: torch's own backward of a bicubic interpolation adds atomically on a GPU, in any order, while these
    give the same bits each time. Passes are fp32 whatever the table's dtype.

    It is a module of its own, and is called, because overlapped parameter gathering waits by hooks on modules' calls.
    """

    def __init__(self, grid: int, hidden_size: int, has_class: bool, antialias: bool, dtype: torch.dtype) -> None:
        super().__init__()
        self.grid, self.has_class, self.antialias = grid, has_class, antialias
        self._matrices: dict[int, Tensor] = {}  # by side, where the table is: made on the CPU once, so that no step waits
        self.weight = torch.nn.Parameter(torch.zeros(grid * grid + has_class, hidden_size, dtype=dtype))

    def forward(self, grid: int | Sequence[tuple[int, int]], places: Tensor | None = None) -> tuple[Tensor | None, Tensor]:
        """The class token's position `[hidden]` or None, and those of the patches `[patches, hidden]`.

        Args:
            grid: patches along one side of pictures that are all alike, for the `grid * grid` patches of one of them; or the
                (rows, columns) of each picture, for the patches of all.
            places: int32 `[patches, 2]`, row and column of each patch, where they are not in reading order. Needed where
                pictures have shapes of their own.
        """
        if isinstance(grid, int):
            table = self._patches(grid, grid)
            if places is not None:
                table = F.embedding(places[:, 0] * grid + places[:, 1], table)
        else:
            assert places is not None
            table = self._shaped(grid, places)
        return (self.weight[0] if self.has_class else None), table

    def _shaped(self, grids: Sequence[tuple[int, int]], places: Tensor) -> Tensor:
        """Each shape is interpolated once, however many pictures have it."""
        first: dict[tuple[int, int], int] = {}
        tables: list[Tensor] = []
        at = 0
        for rows, columns in grids:
            if (rows, columns) not in first:
                first[rows, columns] = at
                tables.append(self._patches(rows, columns))
                at += rows * columns
        told = torch.tensor([(first[grid], grid[1], grid[0] * grid[1]) for grid in grids], device=places.device)
        begin, width = (told[:, n].repeat_interleave(told[:, 2], output_size=len(places)) for n in (0, 1))
        return F.embedding(begin + places[:, 0] * width + places[:, 1], torch.cat(tables))

    def _patches(self, rows: int, columns: int) -> Tensor:
        """`[rows * columns, hidden]` in reading order."""
        own = self.weight[int(self.has_class) :]
        if (rows, columns) == (self.grid, self.grid):
            return own
        down, across = self._matrix(rows), self._matrix(columns)
        between = (down @ own.float().view(self.grid, -1)).view(rows, self.grid, -1)
        return (across @ between).view(rows * columns, -1).to(own.dtype)

    def _matrix(self, side: int) -> Tensor:
        if side not in self._matrices:
            self._matrices[side] = bicubic_matrix(self.grid, side, self.antialias).to(self.weight.device)
        return self._matrices[side]
