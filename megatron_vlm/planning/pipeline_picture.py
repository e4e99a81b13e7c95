"""The picture of a plan: the passes of a pipeline over time, what a step's time goes to, memory by stage."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_vlm.planning.estimate import Estimate, StretchEstimate
from megatron_vlm.planning.memory import RankMemory
from megatron_vlm.planning.pipeline_simulator import events

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: chunks of a stage, forward in blues and backward in oranges
_FORWARD, _BACKWARD, _PICTURES = ("#1f4e79", "#7fb3d5"), ("#c85a17", "#f0b07f"), "#b5179e"
_PARTS = (
    "#1f4e79",
    "#4f81bd",
    "#7fb3d5",
    "#e07b39",
    "#e0b896",
    "#8c564b",
    "#b5179e",
    "#d9d9d9",
    "#c9a227",
    "#74a57f",
    "#999999",
)
_MEMORY = {
    "weights": "#1f4e79",
    "gradients": "#7fb3d5",
    "optimizer": "#e07b39",
    "activations": "#74a57f",
    "encoder": "#b5179e",
    "logits": "#c9a227",
    "batches": "#999999",
    "working": "#8c564b",
}


def write_picture(path: Path, title: str, plan: Estimate) -> None:
    """Write `path` as its suffix says: .png, .svg or .pdf."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draw(title, plan).savefig(path, dpi=130)


def draw(title: str, plan: Estimate) -> Figure:
    """The pipeline of the part of the run that has most pictures, first rounds of its micro-batches, then the rest."""
    from matplotlib.figure import Figure

    stages = plan.layout.pipeline
    heights = [max(1.6, 0.32 * min(stages, 16) + 0.7), 0.8 + 0.42 * len(plan.stretches), 2.4]
    figure = Figure(figsize=(11, 1.2 + sum(heights)), layout="constrained")
    schedule, parts, memory = figure.subplots(3, 1, height_ratios=heights)
    _schedule(schedule, max(plan.stretches, key=lambda part: part.stretch.visual_share))
    _parts(parts, plan)
    _memory(memory, plan)
    for axes in (schedule, parts, memory):
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{title}: {plan.gpus:,} x {plan.hardware.name}, {plan.layout}", fontsize=12, x=0.01, ha="left")
    return figure


def _schedule(axes: Any, part: StretchEstimate) -> None:
    times = part.time.pipeline.times
    shown = min(part.time.micro_batches, 2 * times.stages if times.chunks > 1 else times.stages + 4)
    if times.chunks > 1:
        shown = max(times.stages, shown // times.stages * times.stages)
    encoder = part.time.pipeline.forward[0][0].encoder, part.time.pipeline.backward[0][0].encoder
    unit = 1e3
    label = times.stages <= 16 and shown <= 24
    found = events(times, shown)
    whole = max(event.end for event in found)
    for event in found:
        step = event.step
        colours = _FORWARD if step.forward else _BACKWARD
        left, width = event.begin * unit, (event.end - event.begin) * unit
        axes.barh(
            event.stage, width, left=left, height=0.86, color=colours[step.chunk % 2], edgecolor="white", linewidth=0.4
        )
        seen = encoder[0 if step.forward else 1] if event.stage == 0 and step.chunk == 0 else 0.0
        if seen:
            start = left if step.forward else left + width - seen * unit
            axes.barh(event.stage, seen * unit, left=start, height=0.86, color=_PICTURES, linewidth=0)
        if label and width > 0.012 * whole * unit:
            dark = step.chunk % 2 == 0
            axes.text(
                left + width / 2,
                event.stage,
                str(step.micro_batch),
                ha="center",
                va="center",
                fontsize=6,
                color="white" if dark else "black",
            )
    axes.set_ylim(times.stages - 0.4, -0.6)
    axes.set_xlim(0, whole * unit)
    axes.set_yticks(range(times.stages) if times.stages <= 16 else range(0, times.stages, 4))
    axes.set_ylabel("pipeline stage")
    axes.set_xlabel(
        f"milliseconds: the first {shown} of {part.time.micro_batches} micro-batches of a step of {part.stretch.name!r}"
        + (f"; before them {part.time.encoding * unit:.1f} ms of pictures on all stages" if part.time.encoding else "")
    )
    from matplotlib.patches import Patch

    entries = [(_FORWARD[0], "forward"), (_BACKWARD[0], "backward")]
    if times.chunks > 1:
        entries += [(_FORWARD[1], "forward, other chunk"), (_BACKWARD[1], "backward, other chunk")]
    entries += [(_PICTURES, "pictures")] if encoder[0] else []
    axes.legend(
        handles=[Patch(color=colour, label=word) for colour, word in entries],
        loc="lower center",
        bbox_to_anchor=(0.5, 1.0),
        ncols=len(entries),
        frameon=False,
        fontsize=8,
    )


def _parts(axes: Any, plan: Estimate) -> None:
    """A step of each part of the run, by what its time goes to."""
    names = list(plan.stretches[0].time.parts())
    for row, part in enumerate(plan.stretches):
        left = 0.0
        for name, colour in zip(names, _PARTS, strict=True):
            value = part.time.parts()[name] * 1e3
            axes.barh(row, value, left=left, height=0.7, color=colour, label=name if row == 0 else None)
            left += value
    axes.set_yticks(range(len(plan.stretches)), [part.stretch.name for part in plan.stretches])
    axes.invert_yaxis()
    axes.set_xlabel("milliseconds of a step, on the busiest stage")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=8)


def _memory(axes: Any, plan: Estimate) -> None:
    rows: tuple[RankMemory, ...] = plan.memory_by_stage
    bottom = [0.0] * len(rows)
    for name, colour in _MEMORY.items():
        values = [row.items()[name] / 1e9 for row in rows]
        axes.bar(range(len(rows)), values, bottom=bottom, width=0.8 if len(rows) > 1 else 0.25, color=colour, label=name)
        bottom = [low + value for low, value in zip(bottom, values, strict=True)]
    room = plan.hardware.memory * plan.hardware.usable_memory / 1e9
    axes.axhline(room, color="black", linewidth=1.0, linestyle=(0, (4, 3)), label=f"usable of one {plan.hardware.name}")
    axes.set_ylim(0, 1.08 * max(room, *bottom))
    axes.set_xlim(-0.7, max(len(rows), 4) - 0.3)
    axes.set_xticks(range(len(rows)) if len(rows) <= 16 else range(0, len(rows), 4))
    axes.set_xlabel("pipeline stage")
    axes.set_ylabel("GB of a rank")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=8)
