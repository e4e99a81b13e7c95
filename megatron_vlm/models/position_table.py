"""Learned positions of a square grid of patches, interpolated where pictures have another grid."""

from __future__ import annotations

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
        self._matrices: dict[int, Tensor] = {}  # by grid, where the table is: made on the CPU once, so that no step waits
        self.weight = torch.nn.Parameter(torch.zeros(grid * grid + has_class, hidden_size, dtype=dtype))

    def forward(self, grid: int, places: Tensor | None = None) -> tuple[Tensor | None, Tensor]:
        """The class token's position `[hidden]` or None, and those of the patches `[grid * grid, hidden]`.

        Args:
            grid: patches along one side of the pictures.
            places: int32 `[grid * grid, 2]`, row and column of each patch, where they are not in reading order.
        """
        table = self._patches(grid)
        if places is not None:
            table = F.embedding(places[:, 0] * grid + places[:, 1], table)
        return (self.weight[0] if self.has_class else None), table

    def _patches(self, grid: int) -> Tensor:
        own = self.weight[int(self.has_class) :]
        if grid == self.grid:
            return own
        if grid not in self._matrices:
            self._matrices[grid] = bicubic_matrix(self.grid, grid, self.antialias).to(own.device)
        matrix = self._matrices[grid]
        rows = (matrix @ own.float().view(self.grid, -1)).view(grid, self.grid, -1)
        return (matrix @ rows).view(grid * grid, -1).to(own.dtype)
