"""Where a picture's pixels go: pure geometry of the resize policies, in whole numbers wherever sizes are decided."""

from __future__ import annotations

from dataclasses import dataclass

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


def _nearest(numerator: int, denominator: int) -> int:
    """The quotient rounded half up."""
    return (2 * numerator + denominator) // (2 * denominator)
