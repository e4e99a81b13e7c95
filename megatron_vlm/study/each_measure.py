"""Each task and each blind gap (a caption's loss under another picture, less that under its own) by introduction point."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from megatron_vlm.study.drawing import (
    Picture,
    axis_label,
    lines_of,
    make_figures,
    mark,
    means_in_words,
    reading,
    shade,
    spread,
)
from megatron_vlm.study.results import Measures, Result, value_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_AXIS = "introduction"


def draw_each(results: Sequence[Result]) -> Picture | None:
    """A panel for each; None where images enter at one point, or nothing has an interval."""
    known = [r for r in results if r.leaf.point.value(_AXIS) is not None and r.best_known is not None]
    names = list(dict.fromkeys(name for r in known if r.best_known for name in r.best_known.intervals))
    if len({r.leaf.point.value(_AXIS) for r in known}) < 2 or not names:
        return None
    figures, panels = make_figures(len(names), 2.7, width=3.6)
    lines = lines_of(known, _AXIS)
    told = []
    for panel, name in zip(panels, names, strict=True):
        for number, (label, members) in enumerate(lines.items()):
            _points(panel, members, name, label, number)
            told.append(f"{name}, {label}: {means_in_words(members, _AXIS, name, 3)}")
        chances = {r.best_known.chances[name] for r in known if r.best_known and name in r.best_known.chances}
        for chance in chances:
            panel.axhline(chance, color="#888888", linewidth=0.9, linestyle="--")
        panel.set_title(reading(name), fontsize=9)
        panel.set_xlabel(axis_label(_AXIS), fontsize=8)
        panel.grid(alpha=0.3)
    if len(lines) > 1:
        panels[0].legend(fontsize=7)
    caption = (
        "Means over seeds, each seed a small mark; bars are 95 % intervals over the questions of one run: points whose bars "
        "overlap may not differ. The broken line is chance."
    )
    return Picture("each", "Each task, and what a picture does to its caption", caption, "; ".join(told), figures)


def _points(panel: Axes, results: Sequence[Result], name: str, label: str, number: int) -> None:
    points = spread(results, _AXIS, lambda r: value_of(r.best_known, name))
    if not points:
        return
    xs = [float(at) for at, _ in points]
    means = [sum(values) / len(values) for _, values in points]
    arms = [_arms([r.best_known for r in results if r.leaf.point.value(_AXIS) == at], name) for at, _ in points]
    colour, marker = shade(number), mark(number)
    bars = [[below for below, _ in arms], [above for _, above in arms]]
    panel.errorbar(xs, means, yerr=bars, label=label, color=colour, marker=marker, capsize=3, linewidth=1.4, markersize=5)
    for x, (_, values) in zip(xs, points, strict=True):
        panel.plot([x] * len(values), values, color=colour, marker=".", markersize=4, linestyle="", alpha=0.6)


def _arms(measures: Sequence[Measures | None], name: str) -> tuple[float, float]:
    """How far the interval reaches below and above, averaged over runs. More runs make it no narrower: all of them are asked
    the same questions."""
    reach = [
        (value - low, high - value)
        for m in measures
        if m is not None and name in m.intervals and (value := value_of(m, name)) is not None
        for low, high in (m.intervals[name],)
    ]
    below, above = zip(*reach, strict=True)
    return sum(below) / len(below), sum(above) / len(above)
