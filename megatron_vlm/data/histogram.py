"""How a number is spread over a dataset: bins of powers of two, as bars of text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from megatron_vlm.data.indexed_format import IMAGE_MODE
from megatron_vlm.data.indexed_reader import IndexedReader
from megatron_vlm.data.order import epoch_order
from megatron_vlm.data.picture_size import picture_size

#: pictures whose headers are read where the dataset does not say how large they are
HEADERS_READ = 2000
_FULL = "\u2588"
_EIGHTHS = " \u258f\u258e\u258d\u258c\u258b\u258a\u2589"


@dataclass(frozen=True, slots=True)
class Histogram:
    """Counts of whole numbers from 0 on.

    Attributes:
        title: what is counted.
        bins: (least, most, how many) in ascending order without gaps, each bin twice as wide as the one before.
        mean, median, least, most: of the numbers.
    """

    title: str
    bins: tuple[tuple[int, int, int], ...]
    mean: float
    median: float
    least: int
    most: int

    def as_json(self) -> dict[str, Any]:
        """For a program."""
        bins = [{"from": least, "to": most, "count": count} for least, most, count in self.bins]
        return {
            "title": self.title,
            "mean": self.mean,
            "median": self.median,
            "min": self.least,
            "max": self.most,
            "bins": bins,
        }

    def describe(self, width: int = 40) -> str:
        """A line a bin, its bar at most `width` columns."""
        head = f"{self.title}: {self.least:,} to {self.most:,}, median {self.median:,.10g}, mean {self.mean:,.1f}"
        names = [f"{least:,}" if least == most else f"{least:,}-{most:,}" for least, most, _ in self.bins]
        largest, total = max(count for *_, count in self.bins), sum(count for *_, count in self.bins)
        label = max(map(len, names))
        lines = [head]
        for name, (*_, count) in zip(names, self.bins, strict=True):
            share = f"{100 * count / total:.1f}%"
            lines.append(f"  {name:>{label}} {_bar(count / largest, width):<{width}} {count:>10,} {share:>6}")
        return "\n".join(lines)


def histogram(title: str, values: npt.NDArray[np.integer[Any]]) -> Histogram | None:
    """Of numbers of 0 or more; None where there are none."""
    if not len(values):
        return None
    # bin 0 is of 0; bin k of 2^(k-1) to 2^k - 1
    exponents = np.frexp(values.astype(np.float64))[1]
    counts = np.bincount(exponents)
    first = int(np.flatnonzero(counts)[0])
    bins = [(0, 0, int(counts[0]))] if first == 0 else []
    bins += [(1 << k - 1, (1 << k) - 1, int(counts[k])) for k in range(max(first, 1), len(counts))]
    return Histogram(
        title, tuple(bins), float(values.mean()), float(np.median(values)), int(values.min()), int(values.max())
    )


def dataset_histograms(reader: IndexedReader, facts: npt.NDArray[np.int32] | None, seed: int = 0) -> list[Histogram]:
    """Tokens and images of a document, and the shorter and longer sides of pictures.

    Without facts, sides are of pictures drawn by `seed`, as their headers say.
    """
    found = [histogram("tokens a document", reader.document_text_tokens())]
    pictures = np.flatnonzero(reader.modes == IMAGE_MODE)
    if len(pictures):
        found.append(histogram("images a document", reader.document_images()))
        sides, note = _sides(reader, pictures, facts, seed)
        found.append(histogram(f"shorter side of a picture, in pixels{note}", sides.min(axis=1, initial=1 << 31)))
        found.append(histogram(f"longer side of a picture, in pixels{note}", sides.max(axis=1, initial=0)))
    return [one for one in found if one is not None]


def _sides(
    reader: IndexedReader, pictures: npt.NDArray[np.int64], facts: npt.NDArray[np.int32] | None, seed: int
) -> tuple[npt.NDArray[np.int64], str]:
    """int64[n, 2], and what is to be said of them."""
    if facts is not None:
        sides = np.asarray(facts[pictures], np.int64)
        return np.maximum(sides, 0), ""
    chosen = np.sort(epoch_order(pictures, seed, "headers", 0)[:HEADERS_READ])
    sizes = [picture_size(reader.image_bytes(sequence)) for sequence in chosen.tolist()]
    known = np.array([size for size in sizes if size is not None], np.int64).reshape(-1, 2)
    return known, f" ({len(known):,} of {len(pictures):,} pictures)" if len(known) < len(pictures) else ""


def _bar(share: float, width: int) -> str:
    """A bar to an eighth of a column; what is not zero is seen."""
    eighths = round(share * width * 8)
    if share and not eighths:
        eighths = 1
    return _FULL * (eighths // 8) + _EIGHTHS[eighths % 8].strip()
