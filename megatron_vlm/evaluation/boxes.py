"""Boxes in answers, and whether they are where they should be: RefCOCO, OCID-Ref.

A box is [x0, y0, x1, y1], shares of the picture's width and height from its upper left corner, as LLaVA writes them. Sets
that count pixels, or hundredths or thousandths of the picture, are brought to shares by `scale`.
"""

from __future__ import annotations

import math
import re
from typing import NamedTuple

_NUMBER = r"-?\d+(?:\.\d+)?"
_FOUR = re.compile(rf"({_NUMBER})[,\s]+({_NUMBER})[,\s]+({_NUMBER})[,\s]+({_NUMBER})")


class Box(NamedTuple):
    """Corners, upper left and lower right."""

    x0: float
    y0: float
    x1: float
    y1: float

    @property
    def area(self) -> float:
        return max(0.0, self.x1 - self.x0) * max(0.0, self.y1 - self.y0)


def read_box(text: str, scale: float = 1.0) -> Box | None:
    """The first four numbers of `text` that follow each other, over `scale`; None without any. Corners may be swapped."""
    found = _FOUR.search(text.replace("(", " ").replace(")", " ").replace("<", " ").replace(">", " "))
    if found is None:
        return None
    a, b, c, d = (float(number) / scale for number in found.groups())
    return Box(min(a, c), min(b, d), max(a, c), max(b, d))


def box_text(box: Box, scale: float = 1.0, digits: int | None = None) -> str:
    """A box as LLaVA writes it: `[0.12, 0.30, 0.50, 0.87]`, or on a scale of 1000 `[120, 300, 500, 870]`.

    `digits` after the point; None: two of shares, and as many fewer as `scale` says hundredths without them.
    """
    if digits is None:
        digits = max(0, 2 - math.floor(math.log10(scale)))
    return "[" + ", ".join(f"{value * scale:.{digits}f}" for value in box) + "]"


def intersection_over_union(one: Box, other: Box) -> float:
    """0 for boxes apart, 1 for the same; 0 where neither has an area."""
    shared = Box(max(one.x0, other.x0), max(one.y0, other.y0), min(one.x1, other.x1), min(one.y1, other.y1)).area
    union = one.area + other.area - shared
    return shared / union if union > 0 else 0.0
