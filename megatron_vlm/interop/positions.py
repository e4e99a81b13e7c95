"""A table of learned positions for pictures of another size."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from megatron_vlm.config.model import VisionConfig
from megatron_vlm.errors import DataError
from megatron_vlm.models.position_table import PositionTable


def resized_positions(table: Tensor, vision: VisionConfig) -> Tensor:
    """`[old positions, hidden]` -> those of `vision`'s grid, by the interpolation with which the encoder reads other sizes.

    The class token's row stays. Raises DataError where the old table is of no square grid.
    """
    has_class = vision.kind != "siglip"
    grid = math.isqrt(table.size(0) - has_class)
    if grid * grid + has_class != table.size(0):
        raise DataError(f"a table of {table.size(0)} positions is of no square picture, and cannot be interpolated")
    old = PositionTable(grid, table.size(1), has_class, vision.register_tokens > 0, table.dtype)
    old.weight.data = table
    own, patches = old(vision.grid)
    return patches.detach() if own is None else torch.cat([own.detach().unsqueeze(0), patches.detach()])
