"""The packs of a run: a pure function of seed, curriculum, datasets and place, the same on every rank.

A stage is planned a window of packs at a time. What a window takes of each source, how its packs are filled and their order
follow from where each source stands when it begins, so that is all that a checkpoint keeps, with the number of packs used.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from megatron_vlm.config.run import RunConfig
from megatron_vlm.data.documents import DocumentSource, Span
from megatron_vlm.data.mixture import Mixture
from megatron_vlm.data.step_plan import MixtureReport, StepPlan
from megatron_vlm.data.upcoming import PackRules, Piece, Standing, Upcoming
from megatron_vlm.data.window import Window, WindowPlanner
from megatron_vlm.errors import DataError
from megatron_vlm.ops.pack_order import WHOLE_SHARE


@dataclass
class _Count:
    """What a source has given since the run began, and what it is behind its share: positions, in parts of WHOLE_SHARE."""

    tokens: int = 0
    visual: int = 0
    documents: int = 0
    #: documents left out and documents shortened
    dropped: int = 0
    truncated: int = 0
    behind: int = 0


@dataclass
class _Stage:
    """Positions of the stage so far: filled, of pictures, and of pictures as planned."""

    filled: int = 0
    visual: int = 0
    planned_visual: float = 0.0


@dataclass
class _Totals:
    sources: dict[str, _Count]
    stage: _Stage = field(default_factory=_Stage)
    padded: int = 0


class PackPlanner:
    """Plans the steps of a run one after another, for all ranks alike.

    Args:
        sources: of the run, by name.
        config: of the run: its curriculum, steps, seed and rules of packing.

    Raises:
        ConfigError: a stage has a share of visual tokens that its sources cannot reach.
    """

    def __init__(self, sources: Mapping[str, DocumentSource], config: RunConfig) -> None:
        self.sources, self.config = dict(sources), config
        self.names = list(self.sources)
        curriculum = config.curriculum
        kept = {} if curriculum.when_exhausted == "repeat" else curriculum.max_epochs
        self.upcoming = {n: Upcoming(s, config.schedule.seed, kept.get(n)) for n, s in self.sources.items()}
        self.fingerprint = _fingerprint(config, self.names)
        #: the step that is planned next, its pack counted from the run's start, and the stage it belongs to
        self.step = self.pack = 0
        self.stage = -1
        self.exhausted: tuple[str, ...] = ()
        self.totals = _Totals({name: _Count() for name in self.names})
        #: why planning ended before the last step; empty as long as it did not
        self.ended = ""
        self._window: Window | None = None
        self._taken = 0
        for stage, picture in dict.fromkeys((s.shape.stage, s.shape.picture) for s in config.segments):
            Mixture(curriculum, stage, self.sources, picture)

    # -- steps -----------------------------------------------------------------------------------------------------

    def plans(self) -> Iterator[StepPlan]:
        """Every step from here to the run's last, or to where a source is used up (then `ended` says which)."""
        while self.step < self.config.total_steps:
            plan = self.plan_step()
            if plan is None:
                return
            yield plan

    def plan_step(self) -> StepPlan | None:
        """The next step; None where `curriculum.when_exhausted` is `stop` and a source has had its passes."""
        shape = self.config.shape_of(self.step)
        packs: list[tuple[Span, ...]] = []
        digest = hashlib.sha256()
        while len(packs) < shape.global_batch_size:
            if self._window is None or self._taken == self._window.packs:
                self._finish_window()
                if not self._begin_window():
                    return None
            assert self._window is not None
            count = min(shape.global_batch_size - len(packs), self._window.packs - self._taken)
            packs += [self._window.pack(number) for number in range(self._taken, self._taken + count)]
            digest.update(self._window.contents(self._taken, self._taken + count))
            self._taken += count
        self.step += 1
        plan = (self.step - 1, shape, tuple(packs), self.state(), self.report(), digest.hexdigest()[:16])
        return StepPlan(*plan)

    def _begin_window(self) -> bool:
        config = self.config
        shape = config.segment_of(self.step).shape
        if shape.stage != self.stage:
            self.stage, self.totals.stage = shape.stage, _Stage()
        first, end = self._stage_packs()
        rules = PackRules(shape.sequence_length, shape.picture, config.data)
        for upcoming in self.upcoming.values():
            upcoming.set_rules(rules)
        count = max(1, min(config.data.window_packs, end - self.pack))
        places = (np.arange(self.pack, self.pack + count) - first) / max(1, end - first)
        while True:
            mixture = Mixture(config.curriculum, self.stage, self.sources, shape.picture, self.exhausted)
            if not mixture.active:
                self.ended = f"every source of stage {config.curriculum.stages[self.stage].name!r} has had its passes"
                return False
            planner = WindowPlanner(mixture, self.upcoming, rules, config.schedule.seed)
            window = planner.plan(count, places, self._behind(mixture), self.pack)
            if isinstance(window, Window):
                break
            if config.curriculum.when_exhausted == "stop":
                passes = config.curriculum.max_epochs[window]
                self.ended = f"source {window!r} has had its {passes:g} passes (curriculum.max_epochs)"
                return False
            self.exhausted = (*self.exhausted, window)
        self._mixture, self._window, self._taken = mixture, window, 0
        self._capacity = shape.sequence_length
        return True

    def _stage_packs(self) -> tuple[int, int]:
        """The stage's first pack, and the pack after its last, counted from the run's start."""
        ends = self.config.stage_ends()
        begin = ends[self.stage - 1] if self.stage else 0
        return self.config.packs_before(begin), self.config.packs_before(ends[self.stage])

    def _behind(self, mixture: Mixture) -> np.ndarray:
        counts = self.totals.sources
        return np.array(
            [
                round(counts[n].behind / mixture.positions_of_one(n)) if n in mixture.active else counts[n].behind
                for n in self.names
            ],
            np.int64,
        )

    def _finish_window(self) -> None:
        """The window is used: its account and its documents become the place from which the next one begins."""
        if self._window is None:
            return
        self.totals, self.pack = self._now()
        for name, draw in self._window.draws.items():
            self.upcoming[name].consume(draw.count, draw.rest)
        self._window = None

    def _now(self) -> tuple[_Totals, int]:
        """The account after the packs that were taken of the window."""
        window, taken, before = self._window, self._taken, self.totals
        if window is None:
            return before, self.pack
        now = _Totals({})
        whole = taken == window.packs
        for place, name in enumerate(self.names):
            old = before.sources[name]
            behind = int(window.behind[taken, place])
            if name in self._mixture.active:
                behind = round(behind * self._mixture.positions_of_one(name))
            now.sources[name] = _Count(
                old.tokens + int(window.amounts.positions[:taken, place].sum()),
                old.visual + int(window.amounts.visual[:taken, place].sum()),
                old.documents + int(window.amounts.documents[:taken, place].sum()),
                old.dropped + (window.lost.get(name, 0) if whole else 0),
                old.truncated + (window.cut.get(name, 0) if whole else 0),
                behind,
            )
        filled = int(window.amounts.positions[:taken].sum())
        now.stage = _Stage(
            before.stage.filled + filled,
            before.stage.visual + int(window.amounts.visual[:taken].sum()),
            before.stage.planned_visual + float(window.planned_visual[:taken].sum()),
        )
        now.padded = before.padded + taken * self._capacity - filled
        return now, self.pack + taken

    def report(self) -> MixtureReport:
        """Of the steps planned so far."""
        now, _ = self._now()
        tokens = {name: count.tokens for name, count in now.sources.items()}
        stage = now.stage
        return MixtureReport(
            source_tokens=tokens,
            source_visual={name: count.visual for name, count in now.sources.items()},
            source_documents={name: count.documents for name, count in now.sources.items()},
            source_epochs={name: self._epochs(name) for name in self.names},
            planned_visual_share=stage.planned_visual / stage.filled if stage.filled else 0.0,
            achieved_visual_share=stage.visual / stage.filled if stage.filled else 0.0,
            planned_tokens={n: count.tokens + count.behind / WHOLE_SHARE for n, count in now.sources.items()},
            padded=now.padded,
        )

    def _epochs(self, name: str) -> float:
        """Passes over a source, counted evenly over the window."""
        upcoming, window = self.upcoming[name], self._window
        passed: float = upcoming.passed
        if window is not None:
            passed += (self.standing_after(name).passed - passed) * self._taken / window.packs
        return passed / upcoming.count

    # -- state -----------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Where planning stands: where each source stood when the window began, and how many of its packs are used.

        A few hundred bytes of JSON; more only while documents are left of a window that was given up at a resume.
        """
        if self._window is not None and self._taken == self._window.packs:
            self._finish_window()
        sources = {}
        for name in self.names:
            count, upcoming = self.totals.sources[name], self.upcoming[name]
            sources[name] = {
                "fingerprint": upcoming.source.reader.fingerprint[:16],
                "passed": upcoming.passed,
                "offset": upcoming.offset,
                "tokens": count.tokens,
                "visual": count.visual,
                "documents": count.documents,
                "dropped": count.dropped,
                "truncated": count.truncated,
                "behind": count.behind,
                **({"carried": [list(piece) for piece in upcoming.carried]} if upcoming.carried else {}),
            }
        stage = self.totals.stage
        return {
            "plan": self.fingerprint,
            "step": self.step,
            "pack": self.pack,
            "taken": self._taken if self._window is not None else 0,
            "stage": [self.stage, stage.filled, stage.visual, stage.planned_visual],
            "padded": self.totals.padded,
            "exhausted": list(self.exhausted),
            "sources": sources,
        }

    def load(self, state: Mapping[str, Any], before: PackPlanner | None = None) -> list[str]:
        """Go on where `state` was taken.

        Args:
            state: of a planner of the same run, or of one with another curriculum, other sources or rules of packing.
            before: a planner of the configuration that the state was taken with; needed where that differs. What its window
                had drawn and not used comes first in this one; nothing is repeated or lost but what belongs to a source that
                is no longer there.

        Returns:
            What changed, a line each, for the log.

        Raises:
            DataError: a dataset changed since the state was taken, or the configuration did and `before` is missing.
        """
        if state["plan"] == self.fingerprint:
            self._load_same(state)
            return []
        if before is None:
            raise DataError(
                "the checkpoint was planned with another curriculum, and its configuration is not there to go on from; "
                "resume with the configuration of the checkpoint"
            )
        before.load(state)
        return self._take_over(before)

    def _load_same(self, state: Mapping[str, Any]) -> None:
        stage, filled, visual, planned = state["stage"]
        self.step, self.pack, self.stage = int(state["step"]), int(state["pack"]), int(stage)
        self.exhausted = tuple(state["exhausted"])
        self.totals = _Totals({}, _Stage(int(filled), int(visual), float(planned)), int(state["padded"]))
        self._window, self._taken, self.ended = None, 0, ""
        for name in self.names:
            known, upcoming = state["sources"][name], self.upcoming[name]
            _same_data(upcoming.source, known["fingerprint"])
            self.totals.sources[name] = _Count(
                *(int(known[key]) for key in ("tokens", "visual", "documents", "dropped", "truncated", "behind"))
            )
            carried: list[Piece] = [(int(d), int(s), int(n)) for d, s, n in known.get("carried", [])]
            upcoming.move(int(known["passed"]), int(known["offset"]), carried)
        if state["taken"]:
            step, self.step = self.step, self.step - 1  # the window was begun for a step before this one
            begun = self._begin_window()
            assert begun, "the window was planned before"
            self.step, self._taken = step, int(state["taken"])

    def _take_over(self, before: PackPlanner) -> list[str]:
        """Begin where another plan stands, with what its window leaves."""
        told = []
        now, _ = before._now()
        left = before.left_over()
        self.step, self._window, self._taken = before.step, None, 0
        self.pack = self.config.packs_before(self.step)
        self.stage, self.exhausted = -1, ()
        self.totals = _Totals({}, padded=now.padded)
        for name in self.names:
            upcoming = self.upcoming[name]
            if name not in before.upcoming:
                self.totals.sources[name] = _Count()
                told.append(f"source {name!r} is new, and begins with its first document")
                continue
            old = before.upcoming[name]
            _same_data(upcoming.source, old.source.reader.fingerprint)
            self.totals.sources[name] = now.sources[name]
            after = before.standing_after(name)
            upcoming.move(after.passed, after.offset, left[name])
            if left[name]:
                told.append(f"source {name!r}: {len(left[name])} documents drawn by the old plan come first in the new one")
        for name in before.names:
            if name not in self.upcoming:
                lost = f", and {len(left[name])} documents that were drawn are not trained on" if left[name] else ""
                told.append(f"source {name!r} is no longer there after {before.upcoming[name].epochs:.3f} passes{lost}")
        return told

    def left_over(self) -> dict[str, list[Piece]]:
        """What was drawn and not yet used, by source: in the order of drawing, neighbouring pieces of a document joined."""
        left: dict[str, list[Piece]] = {name: [] for name in self.names}
        window = self._window
        if window is None:
            return {name: self.standing_after(name).carried for name in self.names}
        rows = window.spans[int(window.starts[self._taken]) :]
        for place, name in enumerate(self.names):
            draw = window.draws.get(name)
            drawn = draw.entries.document[: draw.count + 1].tolist() if draw else []
            turn = {document: number for number, document in reversed(list(enumerate(drawn)))}
            mine: list[list[int]] = sorted(rows[rows[:, 0] == place, 1:4].tolist(), key=lambda row: (turn[row[0]], row[1]))
            for document, start, length in mine:
                if left[name] and left[name][-1][0] == document and sum(left[name][-1][1:]) == start:
                    length += left[name][-1][2]
                    start = left[name].pop()[1]
                left[name].append((document, start, length))
            left[name] += self.standing_after(name).carried
        return left

    def standing_after(self, name: str) -> Standing:
        """Where a source stands after the window that is being used."""
        draw = self._window.draws.get(name) if self._window is not None else None
        return self.upcoming[name].after(draw.count, draw.rest) if draw else self.upcoming[name].after(0, 0)


def _same_data(source: DocumentSource, fingerprint: str) -> None:
    if not source.reader.fingerprint.startswith(fingerprint[:16]):
        raise DataError(
            f"{source.reader.prefix} is not the dataset that the checkpoint was trained on (its fingerprint changed); give "
            f"the old one, or name the new one otherwise in data.sources, so that it begins with its first document"
        )


def _fingerprint(config: RunConfig, names: list[str]) -> str:
    """Of all that the order depends on beside the datasets: not of layout, micro-batches, learning rates or frozen parts."""
    data, curriculum = config.data, config.curriculum
    rules = [data.long_documents, data.fill_holes, data.min_piece, data.window_packs, data.max_pictures]
    stages = [[s.sources, s.measure, s.ramp, s.ramp_share, s.sources_from] for s in curriculum.stages]
    shapes = [
        [s.shape.stage, s.shape.sequence_length, s.shape.global_batch_size, s.shape.image_tokens, s.first_step, s.steps]
        for s in config.segments
    ]
    aspects = [[s.shape.patch, s.shape.fold] for s in config.segments if s.shape.patch]
    told = [names, rules, stages, curriculum.max_epochs, curriculum.when_exhausted, shapes, config.schedule.seed]
    told += [aspects] if aspects else []
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]
