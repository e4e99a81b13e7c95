"""The figures of a study's report. Seeds are bars: the mean, and the least and the most of what was seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from megatron_vlm.study.cost import Cost
from megatron_vlm.study.drawing import (
    Picture,
    axis_label,
    count_axis,
    draw_line,
    label_of,
    lines_of,
    make_figures,
    mark,
    means_in_words,
    reading,
    shade,
)
from megatron_vlm.study.each_measure import draw_each
from megatron_vlm.study.folder import StudyFolder
from megatron_vlm.study.results import (
    Result,
    curve,
    held_out_curve,
    text_measures,
    value_of,
    vision_measures,
)

_SMOOTHED = 60  # points of a learning curve


def draw_all(results: Sequence[Result], folder: StudyFolder, costs: Mapping[str, Cost]) -> list[Picture]:
    """The figures for which there are results."""
    found = [
        _against(results, "introduction", "when", "When images enter"),
        _against(results, "visual_share", "share", "Share of visual tokens"),
        draw_each(results),
        _curves(results, folder),
        _forgetting(results, folder),
        _blind(results),
        _cost(results, costs),
    ]
    return [picture for picture in found if picture is not None]


# -- against an axis ----------------------------------------------------------------------------------------------------


def _against(results: Sequence[Result], axis: str, name: str, title: str) -> Picture | None:
    """Vision and text measures against the values of an axis, a line for each combination of the others but seeds."""
    known = [r for r in results if r.leaf.point.value(axis) is not None and r.best_known is not None]
    if len({r.leaf.point.value(axis) for r in known}) < 2:
        return None
    measures = [vision_measures(list(results))[:1], text_measures(list(results))[:1]]
    shown = [(kind, found[0]) for kind, found in zip(("vision", "text"), measures, strict=True) if found]
    if not shown:
        return None
    figures, panels = make_figures(len(shown), 3.4)
    lines = lines_of(known, axis)
    for panel, (kind, measure) in zip(panels, shown, strict=True):
        for number, (label, members) in enumerate(lines.items()):
            draw_line(panel, members, axis, lambda r, m=measure: value_of(r.best_known, m), label, number)  # type: ignore[misc]
        panel.set_title(f"{kind}: {reading(measure)}", fontsize=9)
        panel.set_xlabel(axis_label(axis))
        panel.grid(alpha=0.3)
    if len(lines) > 1:
        panels[0].legend(fontsize=8)
    tuned = any(r.after is not None for r in known)
    caption = f"{'After fine-tuning. ' if tuned else ''}Points are means over seeds, bars the least and the most of them."
    alt = "; ".join(_in_words(lines, axis, measure) for _, measure in shown)
    return Picture(name, title, caption, alt, figures)


def _in_words(lines: Mapping[str, Sequence[Result]], axis: str, measure: str) -> str:
    told = []
    for label, members in lines.items():
        told.append(f"{label}: {means_in_words(members, axis, measure, 4)}")
    return f"{measure}: " + "; ".join(told)


# -- on the way ---------------------------------------------------------------------------------------------------------


def _curves(results: Sequence[Result], folder: StudyFolder) -> Picture | None:
    figures, panels = make_figures(2, 3.2)
    any_drawn = False
    for number, result in enumerate(_first_seeds(results)):
        steps = list(curve(folder, result.leaf.end))
        for panel, modality in zip(panels, ("text", "caption"), strict=True):
            told = [(tokens, losses[modality]) for tokens, losses in steps if modality in losses]
            if told:
                any_drawn = True
                panel.plot(*zip(*_thinned(told), strict=True), color=shade(number), linewidth=1.2, label=label_of(result))
    for panel, modality in zip(panels, ("text", "caption"), strict=True):
        panel.set(xlabel="positions trained on", ylabel="nats a token")
        panel.set_title(f"{modality} loss", fontsize=9)
        count_axis(panel)
        panel.grid(alpha=0.3)
    if not any_drawn:
        return None
    panels[1].legend(fontsize=7)
    caption = "Training losses, averaged over stretches; what runs share is drawn once on top of itself. The first seed."
    return Picture("curves", "Learning curves by modality", caption, "Training losses of text and captions.", figures)


def _forgetting(results: Sequence[Result], folder: StudyFolder) -> Picture | None:
    """How the held-out loss of text moves after images enter."""
    figures, panels = make_figures(1, 3.2)
    told = []
    for number, result in enumerate(_first_seeds(results)):
        gaps = set() if result.before is None else set(result.before.gaps)
        points: dict[int, float] = {}
        for tokens, losses in held_out_curve(folder, result.leaf.end):
            text = [loss for name, loss in losses.items() if name not in gaps]
            if text:
                points[tokens] = sum(text) / len(text)
        start = result.leaf.point.config.tokens_before(result.leaf.point.introduction)
        after = [(tokens - start, loss) for tokens, loss in sorted(points.items()) if tokens >= start]
        if len(after) > 1 and start:
            moved = [(tokens, loss - after[0][1]) for tokens, loss in after]
            panels[0].plot(*zip(*moved, strict=True), color=shade(number), marker=".", label=label_of(result))
            told.append(f"{label_of(result)}: {moved[-1][1]:+.3f}")
    if not told:
        return None
    panels[0].axhline(0, color="#888888", linewidth=0.8)
    panels[0].set(xlabel="positions after images enter", ylabel="text loss since then, nats a token")
    count_axis(panels[0])
    panels[0].grid(alpha=0.3)
    panels[0].legend(fontsize=8)
    caption = (
        "Held-out loss of text, less that at the moment when images entered: above 0 text is forgotten. The first seed."
    )
    return Picture("forgetting", "Is text forgotten?", caption, "; ".join(told), figures)


def _first_seeds(results: Sequence[Result]) -> list[Result]:
    seeds = [r.leaf.point.value("seed") for r in results]
    return [r for r in results if r.leaf.point.value("seed") == seeds[0]]


def _thinned(points: list[tuple[int, float]]) -> list[tuple[float, float]]:
    size = max(1, len(points) // _SMOOTHED)
    groups = [points[at : at + size] for at in range(0, len(points), size)]
    return [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]


# -- controls -----------------------------------------------------------------------------------------------------------


def _blind(results: Sequence[Result]) -> Picture | None:
    """What remains of each measure of pictures when the picture is taken away or exchanged."""
    bars: dict[str, dict[str, list[float]]] = {}
    for result in results:
        measures = result.best_known
        if measures is None:
            continue
        for task, by in measures.controls.items():
            if len(by) > 1:
                for control, score in by.items():
                    bars.setdefault(task, {}).setdefault(control, []).append(score)
        for source, gap in measures.gaps.items():
            bars.setdefault(f"loss of {source} under another picture", {}).setdefault("gap", []).append(gap)
    if not bars:
        return None
    figures, panels = make_figures(1, 0.8 + 0.35 * sum(map(len, bars.values())))
    labels: list[str] = []
    for task, scores in bars.items():
        for place, (control, values) in enumerate(scores.items()):
            mean = sum(values) / len(values)
            spans = [[mean - min(values)], [max(values) - mean]]
            panels[0].barh(len(labels), mean, xerr=spans, color=shade(place), capsize=3)
            labels.append(f"{task}: {control}")
    panels[0].set_yticks(range(len(labels)), labels, fontsize=8)
    panels[0].invert_yaxis()
    panels[0].axvline(0, color="#888888", linewidth=0.8)
    caption = (
        "Means over all runs, lines from the least to the most. A task that is answered as well blind does not measure "
        "seeing; a gap of 0 says that the model does not look."
    )
    alt = "; ".join(f"{t} {c} {sum(v) / len(v):.4g}" for t, told in bars.items() for c, v in told.items())
    return Picture("blind", "Does it look at the picture?", caption, alt, figures)


def _cost(results: Sequence[Result], costs: Mapping[str, Cost]) -> Picture | None:
    measures = vision_measures(list(results))[:1]
    points = []
    for result in results:
        value = value_of(result.best_known, measures[0]) if measures else None
        last = result.leaf.finetuned or result.leaf.end
        flops = sum(costs[s.key].flops for s in (*last.ancestors, last))
        if value is not None and flops > 0:
            points.append((flops, value, result))
    if len(points) < 2:
        return None
    figures, panels = make_figures(1, 3.4)
    labels = list(dict.fromkeys(label_of(result) for _, _, result in points))
    for number, label in enumerate(labels):  # seeds of a run look alike
        chosen = [(flops, value) for flops, value, result in points if label_of(result) == label]
        style: dict[str, Any] = {"marker": mark(number), "color": shade(number), "linestyle": ""}
        panels[0].plot(*zip(*chosen, strict=True), label=label, **style)
    panels[0].legend(fontsize=7, bbox_to_anchor=(1.01, 1), loc="upper left", borderaxespad=0)
    panels[0].set(xlabel="FLOPs of the whole run, its shared part too", ylabel=reading(measures[0]))
    count_axis(panels[0])
    panels[0].grid(alpha=0.3)
    caption = "Each run where it stands; a run that another beats at less cost is not worth its price."
    return Picture("cost", "Cost against quality", caption, f"{len(points)} runs by FLOPs and {measures[0]}.", figures)
