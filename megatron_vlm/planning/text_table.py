"""Plans as text: short numbers, and columns as wide as they need."""

from __future__ import annotations

from collections.abc import Iterator

_SIZES = ((1e21, "Z"), (1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def human(value: float) -> str:
    """1234567 -> '1.23M'."""
    for size, suffix in _SIZES:
        if abs(value) >= size:
            return f"{value / size:.3g}{suffix}"
    return f"{value:.3g}"


def table(rows: list[list[str]]) -> Iterator[str]:
    """A line a row, the first column left and the others right; rows are of one length."""
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))]
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        yield "  ".join(cells).rstrip()
