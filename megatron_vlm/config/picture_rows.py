"""How many rows of the language model's input a picture takes: one number for all, or what its shape asks for."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from math import isqrt


@dataclass(frozen=True, slots=True)
class PictureRows:
    """Rows (placeholders) of a picture.

    Attributes:
        most: of every picture; where pictures keep their aspect, of one at most.
        patch: side of a patch in pixels where pictures keep their aspect; 0: each has `most` rows.
        fold: patches of a side that become one row: the projector's pixel-shuffle times the stage's image_pool.
    """

    most: int
    patch: int = 0
    fold: int = 1

    @property
    def native(self) -> bool:
        """Whether pictures keep their aspect."""
        return self.patch > 0

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """(rows, columns) of patches of a native picture of so many pixels; a size below 1, one that is not known, gives the
        least."""
        if min(height, width) < 1:
            return self.fold, self.fold
        return native_grid(height, width, self.patch, self.fold, self.most * self.fold**2)

    def of(self, height: int, width: int) -> int:
        """Rows of a picture of so many pixels."""
        if not self.native:
            return self.most
        rows, columns = self.grid(height, width)
        return rows * columns // self.fold**2

    def of_pixels(self, height: int, width: int) -> int:
        """Rows of a picture that lies on its canvas already."""
        if not self.native:
            return self.most
        side = self.patch * self.fold
        return (height // side) * (width // side)


def as_rows(rows: int | PictureRows) -> PictureRows:
    """`rows`; a number is that of every picture."""
    return rows if isinstance(rows, PictureRows) else PictureRows(rows)


@lru_cache(maxsize=1 << 16)
def native_grid(height: int, width: int, patch: int, group: int, budget: int) -> tuple[int, int]:
    """(rows, columns) of patches for a picture that keeps its aspect: multiples of `group`, `rows * columns <= budget`.

    A picture within the budget keeps its scale, a larger one is scaled down to it. The sides that this gives are rounded up
    or down to whole groups, whichever of the ways has the aspect nearest to the picture's, then the most patches, then the
    most rows; one group is the least. Whole numbers only, so every machine gives the same; csrc/native_grid.h is its twin.

    Args:
        height, width: of the upright picture, in pixels.
        patch: side of a patch in pixels.
        group: patches of a side that become one row.
        budget: patches of a picture at most, `group * group` at least.

    Raises:
        ValueError: a number below 1, or a budget that holds no group.
    """
    if min(height, width, patch, group, budget) < 1:
        raise ValueError(f"sides, patch, group and budget must be at least 1, not {(height, width, patch, group, budget)}")
    most = budget // (group * group)
    if not most:
        raise ValueError(f"a budget of {budget} patches holds no group of {group} x {group}; at least {group * group}")
    area = min(Fraction(most), Fraction(height * width, (patch * group) ** 2))
    rows = _whole_sides(area * height / width, most)
    columns = _whole_sides(area * width / height, most)
    grids = {(r, min(c, most // r)) for r in rows for c in columns}
    best = min(grids, key=lambda grid: (_stretch(grid, height, width), -grid[0] * grid[1], -grid[0]))
    return best[0] * group, best[1] * group


def _whole_sides(square: Fraction, most: int) -> set[int]:
    """The side whose square this is, rounded down and up, from 1 to `most`."""
    down = isqrt(square.numerator // square.denominator)
    up = down if down * down == square else down + 1
    return {min(max(1, side), most) for side in (down, up)}


def _stretch(grid: tuple[int, int], height: int, width: int) -> Fraction:
    """How much longer one side of a picture becomes beside the other; 1 where the aspect is kept."""
    ratio = Fraction(grid[0] * width, grid[1] * height)
    return max(ratio, 1 / ratio)
