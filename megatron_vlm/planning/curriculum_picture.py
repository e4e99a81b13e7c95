"""The picture of a plan over the positions of the run, and of a run beside it."""

from __future__ import annotations

import html
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_vlm.planning.curriculum_achieved import Achieved, Moment
from megatron_vlm.planning.curriculum_plan import CurriculumPlan, Piece

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: blue for what comes first, which is text as a rule, then warm and cold by turns; told apart without colours by lightness
_COLOURS = ("#1f4e79", "#e07b39", "#7fb3d5", "#8c564b", "#74a57f", "#c9a227", "#6a4c93", "#999999")
_PICTURES = "#b5179e"
_WINDOWS = 120  # of a run, over each of which its shares are taken


def write_picture(path: Path, title: str, plan: CurriculumPlan, achieved: Achieved | None, text: str) -> None:
    """Write `path` as its suffix says: .png, .svg, .pdf, or .html, which has `text` below the picture."""
    figure = draw(title, plan, achieved)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".html":
        path.write_text(_page(title, figure, text), encoding="utf-8")
    else:
        figure.savefig(path, dpi=140)


def _page(title: str, figure: Figure, text: str) -> str:
    drawn = io.StringIO()
    figure.savefig(drawn, format="svg")
    picture = drawn.getvalue()[drawn.getvalue().index("<svg") :]
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>body{{font-family:sans-serif;max-width:70em;margin:2em auto}}svg{{width:100%;height:auto}}"
        f"pre{{overflow-x:auto;font-size:13px;line-height:1.35}}</style>"
        f"{picture}<pre>{html.escape(text)}</pre></html>\n"
    )


def draw(title: str, plan: CurriculumPlan, achieved: Achieved | None) -> Figure:
    """Shares by source, pictures so far, rate, batch and length; of a run also its shares and how far they are off."""
    from matplotlib.figure import Figure

    heights = {"planned": 3.0, "achieved": 3.0, "off": 1.7, "visual": 2.0, "rate": 1.7, "sizes": 1.5}
    if achieved is None:
        del heights["achieved"], heights["off"]
    figure = Figure(figsize=(10, 1.3 + sum(heights.values())), layout="constrained")
    panels = dict(
        zip(heights, figure.subplots(len(heights), 1, sharex=True, height_ratios=list(heights.values())), strict=True)
    )
    unit, word = _unit(plan.total_tokens)
    names = list(dict.fromkeys([*plan.sources, *(achieved.sources if achieved else [])]))
    colours = {name: _COLOURS[place % len(_COLOURS)] for place, name in enumerate(names)}
    _planned(panels["planned"], plan, colours, unit)
    _visual(panels["visual"], plan, achieved, unit, word)
    _rate(panels["rate"], plan, achieved, unit)
    _sizes(panels["sizes"], plan, unit)
    if achieved is not None:
        _achieved(panels["achieved"], achieved, colours, unit)
        _off(panels["off"], plan, achieved, colours, unit)
    for axes in panels.values():
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(x=0)
        for stage in plan.stages[1:]:
            axes.axvline(stage.first_token / unit, color="0.35", linewidth=0.8, linestyle=(0, (4, 3)), zorder=3)
    _name_stages(panels["planned"], plan, unit)
    panels["sizes"].set_xlabel(f"positions, {word}")
    panels["sizes"].set_xlim(0, plan.total_tokens / unit)
    figure.suptitle(f"{title}: {plan.total_steps:,} steps", fontsize=12, x=0.01, ha="left")
    figure.align_ylabels()
    return figure


def _unit(tokens: float) -> tuple[float, str]:
    for size, word in ((1e9, "billions"), (1e6, "millions"), (1e3, "thousands")):
        if tokens >= 2 * size:
            return size, word
    return 1.0, "one by one"


def _stepped(pieces: list[Piece], unit: float) -> list[float]:
    """Both ends of each piece, so that areas have upright sides."""
    return [edge / unit for piece in pieces for edge in (piece.first_token, piece.first_token + piece.tokens)]


def _twice(values: list[float]) -> list[float]:
    return [value for value in values for _ in range(2)]


def _stack(axes: Any, x: list[float], shares: dict[str, list[float]], colours: dict[str, str], label: str) -> None:
    axes.stackplot(x, *shares.values(), labels=list(shares), colors=[colours[name] for name in shares], linewidth=0)
    axes.set(ylim=(0, 1), ylabel=label)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")


def _planned(axes: Any, plan: CurriculumPlan, colours: dict[str, str], unit: float) -> None:
    x = _stepped(plan.pieces, unit)
    shares = {name: _twice([p.shares.sources.get(name, 0.0) for p in plan.pieces]) for name in plan.sources}
    _stack(axes, x, shares, colours, "planned share")
    _line_of_pictures(axes, x, [piece.shares.visual or 0.0 for piece in plan.pieces])
    if plan.ends_early:
        axes.axvspan(x[-1], plan.total_tokens / unit, color="0.93")
        axes.annotate("ends here: a source has had its passes", (x[-1], 0.5), xytext=(6, 0), textcoords="offset points")
    if not all(stage.known for stage in plan.stages):
        axes.annotate(
            "weights as they stand: datasets are missing",
            (0.01, 0.04),
            xycoords="axes fraction",
            color="white",
            fontsize=8,
        )
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.1), ncols=6, frameon=False, fontsize=9)


def _name_stages(axes: Any, plan: CurriculumPlan, unit: float) -> None:
    for stage, following in zip(plan.stages, [*plan.stages[1:], None], strict=True):
        end = plan.total_tokens if following is None else following.first_token
        middle = (stage.first_token + end) / 2 / unit
        narrow = end - stage.first_token < 0.09 * plan.total_tokens
        axes.annotate(
            stage.name,
            (middle, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(0, 3),
            textcoords="offset points",
            ha="left" if narrow else "center",
            rotation=30 if narrow else 0,
            fontsize=9,
            color="0.25",
        )


def _windows(moments: list[Moment]) -> list[tuple[Moment, Moment]]:
    """The run in stretches, from one moment to another."""
    every = max(1, len(moments) // _WINDOWS)
    ends = moments[every - 1 :: every]
    begin = Moment(0, "", 0, 0.0, {}, 0.0)
    if moments[0].step > 1:  # metrics that begin later
        begin, ends = moments[0], ends[1:]
    if not ends or ends[-1] is not moments[-1]:
        ends = [*ends[: -1 if len(ends) > 1 else None], moments[-1]]
    return list(zip([begin, *ends], ends, strict=False))


def _achieved(axes: Any, achieved: Achieved, colours: dict[str, str], unit: float) -> None:
    windows = _windows(achieved.moments)
    x = [edge / unit for first, last in windows for edge in (first.token, last.token)]
    shares: dict[str, list[float]] = {name: [] for name in achieved.sources}
    visual = []
    for first, last in windows:
        gained = {name: last.source_tokens[name] - first.source_tokens.get(name, 0.0) for name in last.source_tokens}
        filled = max(1.0, sum(gained.values()))
        for name in shares:
            shares[name].append(gained.get(name, 0.0) / filled)
        visual.append((last.visual - first.visual) / filled)
    _stack(axes, x, {name: _twice(values) for name, values in shares.items()}, colours, "achieved share")
    _line_of_pictures(axes, x, visual)


def _line_of_pictures(axes: Any, x: list[float], shares: list[float]) -> None:
    """The share of all positions that are pictures', from the bottom, where there is any."""
    seen = _twice([share if share > 0 else float("nan") for share in shares])
    axes.plot(x, seen, color="white", linewidth=3.2)
    axes.plot(x, seen, color=_PICTURES, linewidth=1.6, label="pictures, of all positions")


def _off(axes: Any, plan: CurriculumPlan, achieved: Achieved, colours: dict[str, str], unit: float) -> None:
    """Positions by which each source is ahead of the plan for as many positions as were filled."""
    moments = [last for _, last in _windows(achieved.moments)]
    x = [moment.token / unit for moment in moments]
    planned = [_planned_for(plan, moment) for moment in moments]
    for name in achieved.sources:
        ahead = [m.source_tokens.get(name, 0.0) - p.get(name, 0.0) for m, p in zip(moments, planned, strict=True)]
        axes.plot(x, ahead, color=colours[name], linewidth=1.4)
    axes.axhline(0, color="0.5", linewidth=0.8)
    axes.set_ylabel("positions ahead\nof the plan")


def _planned_for(plan: CurriculumPlan, moment: Moment) -> dict[str, float]:
    if moment.planned is not None:
        return moment.planned
    planned, _ = plan.planned_before(moment.token)
    scale = sum(moment.source_tokens.values()) / max(1.0, sum(planned.values()))
    return {name: tokens * scale for name, tokens in planned.items()}


def _visual(axes: Any, plan: CurriculumPlan, achieved: Achieved | None, unit: float, word: str) -> None:
    x, y, total = [0.0], [0.0], 0.0
    for piece in plan.pieces:
        total += (piece.shares.visual or 0.0) * piece.tokens
        x.append((piece.first_token + piece.tokens) / unit)
        y.append(total)
    size, name = _unit(total) if total else (unit, word)
    axes.plot(x, [value / size for value in y], color=_PICTURES, linewidth=1.6, label="planned")
    if achieved is not None:
        points = [(m.token / unit, m.visual / size) for m in achieved.moments]
        axes.plot(*zip(*points, strict=True), color="black", linewidth=2.6, alpha=0.45, label="achieved")
        axes.legend(loc="upper left", frameon=False, fontsize=8)
    if any(piece.shares.visual is None for piece in plan.pieces):
        axes.annotate("not known: datasets are missing", (0.01, 0.8), xycoords="axes fraction", fontsize=8, color="0.4")
    entry = plan.pictures_enter
    if entry is not None and entry.first_token > 0:
        early = entry.first_token < 0.15 * plan.total_tokens
        axes.annotate(
            f"pictures enter\nstep {int(entry.first_step):,}",
            (entry.first_token / unit, 0),
            xytext=(6 if early else -6, 14),
            textcoords="offset points",
            ha="left" if early else "right",
            fontsize=8,
            arrowprops={"arrowstyle": "->", "color": "0.4"},
        )
    axes.set_ylim(0, None)
    axes.set_ylabel(f"picture positions\nso far, {name}")
    axes.grid(alpha=0.25)


def _rate(axes: Any, plan: CurriculumPlan, achieved: Achieved | None, unit: float) -> None:
    tokens = _tokens_of_steps(plan)
    axes.plot([tokens(step) / unit for step, _ in plan.rates], [r for _, r in plan.rates], color="#1f4e79", linewidth=1.6)
    if achieved is not None:
        points = [(tokens(m.step - 1) / unit, m.lr) for m in achieved.moments]
        axes.plot(*zip(*points, strict=True), color="black", linewidth=2.6, alpha=0.45)
    axes.set_ylim(0, None)
    axes.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    axes.set_ylabel("learning rate")
    axes.grid(alpha=0.25)


def _tokens_of_steps(plan: CurriculumPlan) -> Any:
    import numpy as np

    steps = [piece.first_step for piece in plan.pieces] + [float(plan.total_steps)]
    tokens = [piece.first_token for piece in plan.pieces] + [float(plan.total_tokens)]
    return lambda step: float(np.interp(step, steps, tokens))


def _sizes(axes: Any, plan: CurriculumPlan, unit: float) -> None:
    x = _stepped(plan.pieces, unit)
    axes.plot(x, _twice([float(p.shape.global_batch_size) for p in plan.pieces]), color="#1f4e79", linewidth=1.6)
    # the two lines lie at heights of their own
    axes.set_ylim(0, 1.15 * max((piece.shape.global_batch_size for piece in plan.pieces), default=1))
    axes.set_ylabel("packs a step", color="#1f4e79")
    right = axes.twinx()
    lengths = [float(piece.shape.sequence_length) for piece in plan.pieces]
    right.plot(x, _twice(lengths), color="#e07b39", linewidth=1.6, linestyle=(0, (5, 2)))
    right.set_ylim(0, 1.7 * max(lengths, default=1.0))
    right.set_ylabel("length", color="#e07b39")
    right.spines["top"].set_visible(False)
    right.margins(x=0)
    axes.grid(alpha=0.25)
