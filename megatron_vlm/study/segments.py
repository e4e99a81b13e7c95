"""The graph of a study: pieces of runs, each trained once however many runs it is part of, and what is measured of them.

A piece is named by what it comes to: a state of the trunk by the trunk's configuration and its step, a branch by the state
that it begins with and its own stage, an evaluation by the weights and the questions. So what is done stays done when
points are added or taken away, and nothing that is asked for twice is run twice.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from megatron_vlm.config.bookkeeping import CheckpointConfig
from megatron_vlm.config.loading import from_map, merge, to_map
from megatron_vlm.config.precision import PrecisionConfig
from megatron_vlm.config.run import RunConfig
from megatron_vlm.data.indexed_reader import IndexedReader
from megatron_vlm.errors import ConfigError, DataError
from megatron_vlm.study.asked import asked, held_out
from megatron_vlm.study.points import Point, study_points
from megatron_vlm.study.study_file import FinetuneConfig, StudyFile

Kind = Literal["trunk", "branch", "finetune", "evaluate"]
#: sections of a configuration that leave the weights as they are, or within rounding
_BESIDE = ("logging", "checkpoint", "loader", "faults", "evaluation", "parallel", "performance")
_LENGTH = 12  # characters of a key


@dataclass
class Segment:
    """One piece of work.

    Attributes:
        key: names what comes out; the folder's name is kind-key.
        parent: the segment whose state it begins with, None for a new model.
        config: of the run; of an evaluation that of the run it measures.
        first_step, end_step: of the run; 0 for an evaluation.
        points: the runs that it is part of.
    """

    key: str
    kind: Kind
    name: str
    parent: Segment | None
    config: RunConfig
    first_step: int = 0
    end_step: int = 0
    points: list[Point] = field(default_factory=list)

    @property
    def folder_name(self) -> str:
        return f"{self.kind}-{self.key}"

    @property
    def tokens(self) -> int:
        return self.config.tokens_before(self.end_step) - self.config.tokens_before(self.first_step)

    @property
    def ancestors(self) -> list[Segment]:
        """From the first to the one before this."""
        return [] if self.parent is None else [*self.parent.ancestors, self.parent]


@dataclass(frozen=True)
class Leaf:
    """What a point's run comes to: its last segment, what measures it, and the same after fine-tuning."""

    point: Point
    end: Segment
    before: Segment | None
    finetuned: Segment | None
    after: Segment | None


@dataclass(frozen=True)
class Graph:
    """Every segment in an order in which each comes after what it begins with, and the points' ends."""

    study: StudyFile
    segments: tuple[Segment, ...]
    leaves: tuple[Leaf, ...]


def study_graph(study: StudyFile) -> Graph:
    """Raises ConfigError as `study_points` does, or for tasks that are not there."""
    points = study_points(study)
    found: dict[str, Segment] = {}
    fingerprints: dict[str, str] = {}
    questions = asked(study.evaluate)

    def known(segment: Segment, point: Point) -> Segment:
        kept = found.setdefault(segment.key, segment)
        if not any(point is other for other in kept.points):
            kept.points.append(point)
        return kept

    groups = {point.values: _hash("trunk", _trunk_physics(point.trunk, fingerprints)) for point in points}
    cuts = {
        group: sorted({p.introduction for p in points if groups[p.values] == group and p.introduction > 0})
        for group in groups.values()
    }
    leaves = []
    for point in points:
        end: Segment | None = None
        for step in cuts[groups[point.values]]:
            if step <= point.introduction:
                end = known(_trunk(point, groups[point.values], end, step), point)
        if point.introduction < point.config.total_steps:
            end = known(_branch(point, end, fingerprints), point)
        assert end is not None
        before = after = finetuned = None
        if study.evaluate.before_finetune or point.finetune is None:
            before = known(_evaluation(questions, end, fingerprints), point)
        if point.finetune is not None:
            finetuned = known(_finetune(point.finetune, point, end, fingerprints), point)
            after = known(_evaluation(questions, finetuned, fingerprints), point)
        leaves.append(Leaf(point, end, before, finetuned, after))
    _name_trunks(list(found.values()), points)
    return Graph(study, tuple(found.values()), tuple(leaves))


def _name_trunks(segments: list[Segment], points: list[Point]) -> None:
    """Say of a piece of trunk what all runs through it have in common, and others have not."""
    for segment in segments:
        if segment.kind == "trunk":
            common = [
                f"{axis} {value}"
                for axis, value in segment.points[0].values
                if all(p.value(axis) == value for p in segment.points) and any(p.value(axis) != value for p in points)
            ]
            common = [told for told in common if not told.startswith("introduction ")]
            segment.name += f" ({', '.join(common)})" if common else ""


def _trunk(point: Point, group: str, parent: Segment | None, step: int) -> Segment:
    key = _hash("trunk", {"group": group, "step": step})
    first = parent.end_step if parent is not None else 0
    share = f"{100 * step / point.trunk.total_steps:.3g} %"
    return Segment(key, "trunk", f"text to {share}", parent, point.trunk, first, step)


def _branch(point: Point, parent: Segment | None, fingerprints: dict[str, str]) -> Segment:
    told = {"from": parent.key if parent else None, "step": point.introduction, **_physics(point.config, fingerprints)}
    if parent is not None:  # what was before the point is told by the state that it begins with
        told["curriculum"]["stages"] = told["curriculum"]["stages"][-1:]
    varied = [f"{axis} {value}" for axis, value in point.values]
    return Segment(
        _hash("branch", told),
        "branch",
        "images: " + ", ".join(varied),
        parent,
        point.config,
        point.introduction,
        point.config.total_steps,
    )


def _finetune(finetune: FinetuneConfig, point: Point, parent: Segment, fingerprints: dict[str, str]) -> Segment:
    from megatron_vlm.training.length import with_length

    base = to_map(point.config)
    for name in ("train_tokens", "train_steps", "decay_steps", "exit_step"):
        base["schedule"][name] = None
    base["curriculum"]["stages"] = [{**finetune.stage, "name": "instruct"}]
    over = merge({"schedule": {"train_epochs": {finetune.source: finetune.epochs}}}, finetune.set)
    prefix = merge(base, over)["data"]["sources"].get(finetune.source)
    if finetune.pass_positions is not None and not Path(f"{prefix}.idx").is_file():
        tokens = round(finetune.epochs * finetune.pass_positions)
        over["schedule"] = {**over["schedule"], "train_epochs": {}, "train_tokens": tokens}
    try:
        config = with_length(from_map(merge(base, over)))
    except (ConfigError, DataError) as error:
        raise ConfigError(f"finetune of {point.name}: {error}") from None
    key = _hash("finetune", {"from": parent.key, **_physics(config, fingerprints)})
    name = f"instruct: {point.name}"
    return Segment(key, "finetune", name, parent, config, 0, config.total_steps)


def _evaluation(questions: Mapping[str, Any], parent: Segment, fingerprints: dict[str, str]) -> Segment:
    told = {"of": parent.key, **questions}
    told["validation"] = held_out(parent.config, lambda prefix: _identity(prefix, fingerprints))
    return Segment(_hash("evaluate", told), "evaluate", f"measures {parent.name}", parent, parent.config)


def _physics(config: RunConfig, fingerprints: dict[str, str]) -> dict[str, Any]:
    """What of a configuration decides the weights; datasets by what is in them, where they are there."""
    told = {name: part for name, part in to_map(config).items() if name not in _BESIDE}
    if config.precision == PrecisionConfig():  # so that keys are those of versions without it
        del told["precision"]
    if not config.data.features:
        del told["data"]["features"]
    told["schedule"].pop("exit_step")
    told["start_from"] = config.checkpoint.start_from
    told["data"].pop("validation")
    told["data"].pop("validation_documents", None)
    told["data"]["sources"] = {n: _identity(p, fingerprints) for n, p in told["data"]["sources"].items()}
    return told


def _trunk_physics(config: RunConfig, fingerprints: dict[str, str]) -> dict[str, Any]:
    """What decides a text trunk's weights: not how pictures will be shown, nor the rates of modules that it freezes."""
    told = _physics(config, fingerprints)
    (stage,) = config.curriculum.stages
    if {"vision", "projector"} <= set(stage.freeze):
        told["data"].pop("pictures")
    rates = told["optimizer"]["lr_mult"]
    told["optimizer"]["lr_mult"] = {module: rate for module, rate in rates.items() if module not in stage.freeze}
    return told


def _identity(prefix: str, fingerprints: dict[str, str]) -> str:
    if prefix not in fingerprints:
        try:
            fingerprints[prefix] = IndexedReader(Path(prefix)).fingerprint
        except DataError:
            fingerprints[prefix] = prefix
    return fingerprints[prefix]


def _hash(kind: str, told: Any) -> str:
    text = json.dumps([kind, told], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:_LENGTH]


def run_config(segment: Segment, folder: Path, begins_with: Path | None) -> RunConfig:
    """What the trainer is given for a segment: where it writes, where it leaves, and for fine-tuning whose weights it
    begins with."""
    config = segment.config
    # weights from elsewhere, such as an encoder's, are for what begins a model
    first = config.checkpoint.start_from if segment.parent is None else None
    checkpoint: CheckpointConfig = replace(config.checkpoint, keep_last=1, resume="auto", start_from=first)
    if first is None:
        checkpoint = replace(checkpoint, start_with="weights")
    if segment.kind == "finetune":
        checkpoint = replace(checkpoint, start_from=str(begins_with), start_with="weights")
    schedule = config.schedule if segment.kind == "finetune" else replace(config.schedule, exit_step=segment.end_step)
    return replace(config, checkpoint=checkpoint, schedule=schedule, logging=replace(config.logging, directory=str(folder)))


def separately(leaves: Sequence[Leaf]) -> Iterable[Segment]:
    """The segments that separate runs would train, each as often as there are runs that it is part of."""
    for leaf in leaves:
        last = leaf.finetuned or leaf.end
        yield from [*last.ancestors, last]
