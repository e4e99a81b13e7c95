"""What a study's figures are drawn with: lines by the axes that vary, seeds as bars, labels."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from megatron_vlm.study.results import Result, value_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: told apart without colours by lightness, and by their markers
_COLOURS = ("#1f4e79", "#e07b39", "#74a57f", "#6a4c93", "#c9a227", "#7fb3d5", "#8c564b", "#555555")
_MARKERS = "osD^vPX*"
_MOST_LINES = 6


@dataclass(frozen=True)
class Picture:
    """Figures that belong together, with what is read from them in words: `alt` for who does not see it.

    They stand beside each other where there is room, and below each other on a phone.
    """

    name: str
    title: str
    caption: str
    alt: str
    figures: tuple[Figure, ...]


def lines_of(results: Sequence[Result], axis: str) -> dict[str, list[Result]]:
    """Results by the values of the axes that vary beside this one and seeds; what has one value of the axis is a point."""
    varied = [a for a, _ in results[0].leaf.point.values if a not in (axis, "seed")]
    varied = [a for a in varied if len({r.leaf.point.value(a) for r in results}) > 1]
    found: dict[str, list[Result]] = {}
    for result in results:
        label = ", ".join(f"{a} {result.leaf.point.value(a)}" for a in varied) or "all"
        found.setdefault(label, []).append(result)
    lines = {label: members for label, members in found.items() if len({r.leaf.point.value(axis) for r in members}) > 1}
    # lone points are a control beside a line; many of them are a grid over something else
    return found if len(found) <= _MOST_LINES else lines


def spread(results: Sequence[Result], axis: str, value: Callable[[Result], float | None]) -> list[tuple[str, list[float]]]:
    """Values by value of the axis, in its order; one for each seed."""
    found: dict[str, list[float]] = {}
    for result in results:
        number = value(result)
        if number is not None and math.isfinite(number):
            found.setdefault(result.leaf.point.value(axis) or "", []).append(number)
    return sorted(found.items(), key=lambda item: _place(item[0]))


def means_in_words(results: Sequence[Result], axis: str, measure: str, digits: int) -> str:
    """The mean of a measure over seeds at each value of the axis, for those who do not see the figure."""
    points = spread(results, axis, lambda r: value_of(r.best_known, measure))
    return ", ".join(f"{name} {sum(values) / len(values):.{digits}g}" for name, values in points)


def draw_line(
    panel: Axes, results: Sequence[Result], axis: str, value: Callable[[Result], float | None], label: str, number: int
) -> None:
    points = spread(results, axis, value)
    if not points:
        return
    numeric = all(_number(name) is not None for name, _ in points)
    xs = [_place(name) if numeric else place for place, (name, _) in enumerate(points)]
    means = [sum(values) / len(values) for _, values in points]
    below = [mean - min(values) for mean, (_, values) in zip(means, points, strict=True)]
    above = [max(values) - mean for mean, (_, values) in zip(means, points, strict=True)]
    panel.errorbar(
        xs, means, yerr=[below, above], label=label, color=shade(number), marker=mark(number),
        capsize=3, linewidth=1.6,
    )  # fmt: skip
    if not numeric:
        panel.set_xticks(xs, [name for name, _ in points])


def _number(name: str) -> float | None:
    try:
        return float(name)
    except ValueError:
        return None


def _place(name: str) -> float:
    found = _number(name)
    return math.inf if found is None else found


def shade(number: int) -> str:
    return _COLOURS[number % len(_COLOURS)]


def mark(number: int) -> str:
    return _MARKERS[number % len(_MARKERS)]


def label_of(result: Result) -> str:
    return ", ".join(f"{axis} {value}" for axis, value in result.leaf.point.values if axis != "seed") or "the one run"


def make_figures(panels: int, height: float, width: float = 4.4) -> tuple[tuple[Figure, ...], list[Axes]]:
    """A figure for each panel, so that a page may set them beside or below each other."""
    from matplotlib.figure import Figure

    made = tuple(Figure(figsize=(8 if panels == 1 else width, height), layout="constrained") for _ in range(panels))
    return made, [figure.subplots() for figure in made]


def count_axis(panel: Axes) -> None:
    """Large numbers along x as 200k or 1.5T."""
    from matplotlib.ticker import EngFormatter, MaxNLocator

    panel.xaxis.set_major_locator(MaxNLocator(5))
    panel.xaxis.set_major_formatter(EngFormatter(sep=""))


def axis_label(axis: str) -> str:
    return {
        "introduction": "images enter after this share of the text trunk",
        "visual_share": "share of visual tokens after that",
    }.get(axis, axis.replace("_", " "))


def reading(measure: str) -> str:
    kind, _, of = measure.partition(" ")
    return {
        "stable": f"stable score ({of})",
        "naming": f"naming of {of}, above chance",
        "gap": f"blind gap of {of}, nats",
        "loss": f"held-out loss of {of}, nats (lower is better)",
        "task": of,
    }.get(kind, measure)
