"""Pictures composed of drawings on a 2 x 2 or 3 x 3 grid, 128 x 128 pixels, about which where and how many can be asked."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from mini.concepts import Concept
from mini.drawings import SIDE, Drawing

GRID_SIDE = 128
PLACES = ("top left", "top right", "bottom left", "bottom right")
MOST = 6
"""Of one thing in a 3 x 3 grid."""


@dataclass(frozen=True)
class Grid:
    """A composed picture.

    Attributes:
        name: of its file.
        style: of all drawings in it.
        cells: what is in them, row by row; None is empty.
        pixels: uint8 [128, 128, 3].
    """

    name: str
    style: str
    cells: tuple[Concept | None, ...]
    pixels: npt.NDArray[np.uint8]

    @property
    def caption(self) -> str:
        """Dense: every cell of a 2 x 2 grid, or how many there are of each in a 3 x 3 one."""
        if len(self.cells) == 4:
            return ". ".join(f"{place}: {cell.name}" for place, cell in zip(PLACES, self.cells, strict=True) if cell)
        return ". ".join(f"{many} {name}" for name, many in Counter(c.name for c in self.cells if c).items())


def compose(name: str, style: str, cells: Sequence[Concept | None], drawings: Mapping[tuple[str, str], Drawing]) -> Grid:
    """Draw `cells` (four or nine) in `style`."""
    across = {4: 2, 9: 3}[len(cells)]
    canvas = np.full((SIDE * across, SIDE * across, 3), 255, np.uint8)
    for number, cell in enumerate(cells):
        if cell is not None:
            top, left = (n * SIDE for n in divmod(number, across))
            canvas[top : top + SIDE, left : left + SIDE] = drawings[cell.key, style].pixels
    shrunk = Image.fromarray(canvas).resize((GRID_SIDE, GRID_SIDE), Image.Resampling.LANCZOS)
    return Grid(name, style, tuple(cells), np.asarray(shrunk))


def counted(rng: random.Random, many: int, target: Concept, others: Sequence[Concept]) -> list[Concept | None]:
    """Nine cells with `many` of the target; the rest are others or empty, by chance."""
    cells: list[Concept | None] = [target] * many
    cells += [rng.choice([*others, None]) for _ in range(9 - many)]
    rng.shuffle(cells)
    return cells
