"""A study as text: what it will run and cost, and how far it is."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping

from megatron_vlm.planning.text_table import human, table
from megatron_vlm.study.cost import Cost, totals
from megatron_vlm.study.folder import StudyFolder, read_json
from megatron_vlm.study.segments import Graph, Segment


def describe_plan(graph: Graph, costs: Mapping[str, Cost], folder: StudyFolder, gpu: str, notes: list[str]) -> Iterator[str]:
    """The graph as a tree, and what sharing saves."""
    rows = [["segment", "steps", "tokens", "FLOPs", f"{gpu} hours", "runs", "state"]]
    for segment, depth in _tree(graph):
        cost = costs[segment.key]
        measured = segment.kind == "evaluate"
        steps = "" if measured else f"{segment.first_step:,}-{segment.end_step:,}"
        amounts = ["", "", ""] if measured else [human(cost.tokens), human(cost.flops), f"{cost.gpu_hours:.3g}"]
        name = "  " * depth + segment.name if not measured else "  " * depth + "(measured)"
        rows.append([name, steps, *amounts, str(len(segment.points)), folder.state(segment)])
    yield from table(rows)
    shared, separate = totals(graph, dict(costs))
    kinds = [segment.kind for segment in graph.segments]
    yield ""
    yield (
        f"{len(graph.leaves)} runs from {kinds.count('trunk')} pieces of text trunk, {kinds.count('branch')} branches, "
        f"{kinds.count('finetune')} fine-tunings; {kinds.count('evaluate')} evaluations, which are not in the sums"
    )
    for name, cost in (("shared", shared), ("separate runs", separate)):
        yield f"{name}: {human(cost.tokens)} tokens, {human(cost.flops)} FLOPs, {cost.gpu_hours:,.3g} {gpu} hours"
    if separate.gpu_hours:
        saved = 1 - shared.gpu_hours / separate.gpu_hours
        yield f"sharing saves {saved:.0%} of the hours ({separate.gpu_hours - shared.gpu_hours:,.3g})"
    yield from (f"note: {note}" for note in notes)


def _tree(graph: Graph) -> Iterator[tuple[Segment, int]]:
    """Depth-first: what begins with a segment stands below it."""
    children: dict[str, list[Segment]] = {}
    for segment in graph.segments:
        children.setdefault(segment.parent.key if segment.parent else "", []).append(segment)

    def below(key: str, depth: int) -> Iterator[tuple[Segment, int]]:
        ordered = sorted(children.get(key, []), key=lambda s: (s.kind == "trunk", s.kind != "evaluate"))
        for segment in ordered:
            yield segment, depth
            yield from below(segment.key, depth if segment.kind == "trunk" else depth + 1)

    yield from below("", 0)


def describe_status(graph: Graph, folder: StudyFolder) -> Iterator[str]:
    """A line a segment that is under way or failed, and how many are in which state."""
    counts: dict[str, int] = {}
    rows = [["segment", "state", "step", "of", "time", "left"]]
    for segment in graph.segments:
        state = folder.state(segment)
        counts[state] = counts.get(state, 0) + 1
        if state in ("running", "failed", "interrupted"):
            rows.append([segment.name, state, *_progress(segment, folder, state == "running")])
    if len(rows) > 1:
        yield from table(rows)
    order = ("done", "running", "interrupted", "waiting", "failed")
    yield ", ".join(f"{counts[state]} {state}" for state in order if state in counts)


def _progress(segment: Segment, folder: StudyFolder, running: bool) -> list[str]:
    told = read_json(folder.of(segment) / "running.json") or {}
    spent = time.time() - float(told.get("started", time.time()))
    clock = f"{spent:.0f} s" if running else ""
    if segment.kind == "evaluate":
        return ["", "", clock, ""]
    step = folder.step(segment)
    if step is None:
        return ["", f"{segment.end_step:,}", clock, ""]
    done = step - segment.first_step
    left = spent / done * (segment.end_step - step) if running and done > 0 else None
    return [f"{step:,}", f"{segment.end_step:,}", clock, "" if left is None else f"{left:.0f} s"]
