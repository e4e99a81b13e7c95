"""Where a picture's pixels go: pure geometry of the resize policies, in whole numbers wherever sizes are decided."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import isqrt

from megatron_vlm.config.pictures import Resize

#: JPEGs can be decoded at 1/2, 1/4 and 1/8 of their sides for a fraction of the cost
REDUCTIONS = (8, 4, 2)
#: smaller sides are decoded whole: libraries disagree about the factor where two of them round to one size
LEAST_REDUCED_SIDE = 16


@dataclass(frozen=True, slots=True)
class Placement:
    """Which part of an upright picture is scaled to which size, and where it lies on the canvas. Pixels throughout.

    Attributes:
        size: (height, width) of the whole picture, before any reduction.
        box: (left, upper, right, lower) of the part that is used.
        scaled: (height, width) that the part is scaled to.
        offset: (row, column) of its upper left corner on the canvas.
    """

    size: tuple[int, int]
    box: tuple[float, float, float, float]
    scaled: tuple[int, int]
    offset: tuple[int, int]

    @property
    def reduction(self) -> int:
        """The largest of `REDUCTIONS` at which the part has no fewer pixels than it is scaled to; else 1."""
        left, upper, right, lower = self.box
        if min(self.size) < LEAST_REDUCED_SIDE:
            return 1
        height, width = self.scaled
        return next((r for r in REDUCTIONS if right - left >= r * width and lower - upper >= r * height), 1)

    def box_in(self, height: int, width: int) -> tuple[float, float, float, float]:
        """`box` in the pixels of this picture decoded at `height` x `width`."""
        if (height, width) == self.size:
            return self.box
        x, y = width / self.size[1], height / self.size[0]
        left, upper, right, lower = self.box
        return left * x, upper * y, min(right * x, width), min(lower * y, height)


def place(resize: Resize, size: tuple[int, int], canvas: tuple[int, int]) -> Placement:
    """A picture of `size` (height, width) on a `canvas` (height, width).

    squash and native scale it to the canvas, whose shape is then the caller's choice; centre_crop takes the largest part of
    the canvas's aspect from the middle; letterbox scales it as large as fits, in the middle. No side becomes 0.
    """
    (height, width), (rows, columns) = size, canvas
    whole = (0.0, 0.0, float(width), float(height))
    wider = width * rows > height * columns  # than the canvas
    if resize == "centre_crop" and width * rows != height * columns:
        if wider:
            used = height * columns / rows
            box = ((width - used) / 2, 0.0, (width + used) / 2, float(height))
        else:
            used = width * rows / columns
            box = (0.0, (height - used) / 2, float(width), (height + used) / 2)
        return Placement(size, box, canvas, (0, 0))
    if resize == "letterbox":
        scaled = (
            (max(1, _nearest(height * columns, width)), columns) if wider else (rows, max(1, _nearest(width * rows, height)))
        )
        return Placement(size, whole, scaled, ((rows - scaled[0]) // 2, (columns - scaled[1]) // 2))
    return Placement(size, whole, canvas, (0, 0))


def native_grid(height: int, width: int, patch: int, group: int, budget: int) -> tuple[int, int]:
    """(rows, columns) of patches for a picture that keeps its aspect: multiples of `group`, `rows * columns <= budget`.

    A picture within the budget keeps its scale, a larger one is scaled down to it. The sides that this gives are rounded up
    or down to whole groups, whichever of the ways has the aspect nearest to the picture's, then the most patches, then the
    most rows; one group is the least. Whole numbers only, so every machine gives the same.

    Args:
        height, width: of the upright picture, in pixels.
        patch: side of a patch in pixels.
        group: patches of a side that the projector's pixel-shuffle folds into one.
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


def _nearest(numerator: int, denominator: int) -> int:
    """The quotient rounded half up."""
    return (2 * numerator + denominator) // (2 * denominator)
