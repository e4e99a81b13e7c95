"""What came out of a study's runs: scores by point, before and after fine-tuning, and the losses on the way."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from megatron_vlm.study.folder import StudyFolder, read_json, read_records
from megatron_vlm.study.segments import Graph, Leaf, Segment

#: which measures are read as those of pictures, by the name of the group that a task file gives
TEXT_GROUP, VISION_GROUP = "text", "vision"
CHANCE = 0.25  # of naming
_NORMAL_95 = 1.96  # standard errors on either side


@dataclass(frozen=True)
class Measures:
    """Of one evaluation. Losses are in nats a token, scores from 0 to 1.

    Attributes:
        scores: measure -> value. Stable scores are `stable text` and `stable vision`; naming less its chance is
            `naming NAME`, a task's own score `task NAME`.
        losses: held-out source -> loss.
        gaps: held-out source with pictures -> how much the loss rises under another picture; 0: the model does not look.
        controls: task -> control -> score.
        intervals: measure (`task NAME`, `gap NAME`) -> 95 % interval over questions or documents.
        chances: `task NAME` -> the score of guessing.
    """

    scores: dict[str, float] = field(default_factory=dict)
    losses: dict[str, float] = field(default_factory=dict)
    gaps: dict[str, float] = field(default_factory=dict)
    controls: dict[str, dict[str, float]] = field(default_factory=dict)
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    chances: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """Of one point; None where it is not measured yet, or not at all."""

    leaf: Leaf
    before: Measures | None
    after: Measures | None

    @property
    def best_known(self) -> Measures | None:
        """After fine-tuning where there is one."""
        return self.after or self.before


def read_results(graph: Graph, folder: StudyFolder) -> list[Result]:
    return [
        Result(leaf, *(None if s is None else read_measures(folder, s) for s in (leaf.before, leaf.after)))
        for leaf in graph.leaves
    ]


def read_measures(folder: StudyFolder, segment: Segment) -> Measures | None:
    if not folder.is_done(segment):
        return None
    told = read_json(folder.results(segment))
    return None if told is None else measures_of(told)


def measures_of(told: dict[str, Any]) -> Measures:
    """The results file of `megatron-vlm evaluate --output`."""
    scores: dict[str, float] = {f"stable {group}": float(value) for group, value in told.get("stable_score", {}).items()}
    for name, value in told.get("naming", {}).items():
        scores[f"naming {name}"] = float(value["accuracy"]) - CHANCE
    controls: dict[str, dict[str, float]] = {}
    intervals: dict[str, tuple[float, float]] = {}
    chances: dict[str, float] = {}
    for task in told.get("tasks", []):
        name, control, score = str(task["task"]), str(task["control"]), task["score"]
        controls.setdefault(name, {})[control] = float(score["mean"])
        if control == "seen":
            intervals[f"task {name}"] = float(score["low"]), float(score["high"])
            chances[f"task {name}"] = float(task["chance"])
    scores |= {f"task {name}": by["seen"] for name, by in controls.items() if "seen" in by}
    losses, gaps = {}, {}
    for name, value in told.get("held_out", {}).items():
        losses[name] = float(value["loss"])
        if value.get("blind_gap") is not None:
            gaps[name] = gap = float(value["blind_gap"])
            if value.get("gap_error") is not None:
                arm = _NORMAL_95 * float(value["gap_error"])
                intervals[f"gap {name}"] = gap - arm, gap + arm
    return Measures(scores, losses, gaps, controls, intervals, chances)


def vision_measures(results: list[Result]) -> list[str]:
    """Measures of what pictures tell, the most telling first: stable score, naming, then the held-out gaps."""
    known = _all_scores(results)
    found = [name for name in known if name == f"stable {VISION_GROUP}"]
    found += [name for name in known if name.startswith("naming ")]
    return found + [f"gap {name}" for name in _gap_names(results)]


def text_measures(results: list[Result]) -> list[str]:
    """Measures of text: stable score, then held-out losses of sources without pictures."""
    gaps = set(_gap_names(results))
    losses = dict.fromkeys(name for r in results for m in (r.before, r.after) if m for name in m.losses)
    return [name for name in _all_scores(results) if name == f"stable {TEXT_GROUP}"] + [
        f"loss {name}" for name in losses if name not in gaps
    ]


def value_of(measures: Measures | None, name: str) -> float | None:
    """A measure by the names that `vision_measures` and `text_measures` give."""
    if measures is None:
        return None
    kind, _, of = name.partition(" ")
    return (
        measures.gaps.get(of) if kind == "gap" else measures.losses.get(of) if kind == "loss" else measures.scores.get(name)
    )


def _all_scores(results: list[Result]) -> list[str]:
    return list(dict.fromkeys(name for r in results for m in (r.before, r.after) if m for name in m.scores))


def _gap_names(results: list[Result]) -> list[str]:
    return list(dict.fromkeys(name for r in results for m in (r.before, r.after) if m for name in m.gaps))


def curve(folder: StudyFolder, segment: Segment) -> Iterator[tuple[int, dict[str, float]]]:
    """(positions trained on, loss by modality) of the steps from the run's first to the segment's last, through all that it
    shares with others."""
    for part in [*(s for s in segment.ancestors if s.kind != "finetune"), segment]:
        if part.kind == "finetune":
            continue
        for record in read_records(folder.metrics(part)):
            if record.get("kind") == "train" and part.first_step <= int(record["step"]) < part.end_step:
                losses = {name: float(record[name]) for name in ("text", "caption") if isinstance(record.get(name), float)}
                losses |= {n: float(v) for n, v in (record.get("losses") or {}).items()}
                yield part.config.tokens_before(int(record["step"]) + 1), losses


def held_out_curve(folder: StudyFolder, segment: Segment) -> Iterator[tuple[int, dict[str, float]]]:
    """(positions, held-out loss by source) as measured while it trained."""
    for part in [*(s for s in segment.ancestors if s.kind != "finetune"), segment]:
        for record in read_records(folder.metrics(part)):
            if record.get("kind") == "eval" and part.first_step <= int(record["step"]) <= part.end_step:
                yield part.config.tokens_before(int(record["step"])), dict(record["losses"])
