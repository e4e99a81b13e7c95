"""What a run's metrics say of its mixture, and how it differs from the plan."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from megatron_vlm.config.run import RunConfig
from megatron_vlm.planning.curriculum_plan import CurriculumPlan


@dataclass(frozen=True, slots=True)
class Moment:
    """The run after a step, counted from its start. `token`: positions with padding, which the other counts leave out.

    `planned` is what the run itself says it had planned of them, None if it does not say.
    """

    step: int
    stage: str
    token: int
    lr: float
    source_tokens: dict[str, float]
    visual: float
    planned: dict[str, float] | None = None


@dataclass
class Achieved:
    moments: list[Moment] = field(default_factory=list)
    #: passes over each source's documents, of the last step that says so
    source_epochs: dict[str, float] = field(default_factory=dict)

    @property
    def sources(self) -> list[str]:
        return list(self.moments[-1].source_tokens) if self.moments else []


@dataclass(frozen=True, slots=True)
class Difference:
    """Planned and achieved shares (0 to 1) of the filled positions of a stage so far; `source` None: pictures."""

    stage: str
    source: str | None
    planned: float | None
    achieved: float
    filled: float

    @property
    def tokens(self) -> float | None:
        """Positions too many (above 0) or too few."""
        return None if self.planned is None else (self.achieved - self.planned) * self.filled


def read_achieved(records: Iterable[dict[str, Any]], config: RunConfig) -> Achieved:
    """The training records of metrics.jsonl, in order.

    Newer runs count `source_tokens` and `source_visual` from their start. Older ones count from the start of each stage and
    have a share of pictures alone; both are read. Records without `source_tokens` are passed over.
    """
    achieved = Achieved()
    kept: dict[str, float] = {}
    kept_visual = 0.0
    for record in records:
        if record.get("kind") != "train" or not isinstance(record.get("source_tokens"), dict):
            continue
        counts = {name: float(count) for name, count in record["source_tokens"].items()}
        last = achieved.moments[-1] if achieved.moments else None
        if "source_visual" in record:
            visual = float(sum(record["source_visual"].values()))
        else:
            if last is not None and last.stage != record["stage"]:
                kept, kept_visual = dict(last.source_tokens), last.visual
            visual = kept_visual + float(record.get("achieved_visual_share", 0.0)) * sum(counts.values())
            names = [*kept, *(name for name in counts if name not in kept)]
            counts = {name: kept.get(name, 0.0) + counts.get(name, 0.0) for name in names}
        step = int(record["step"])
        token = int(record["tokens"]) if "tokens" in record else config.tokens_before(step + 1)
        planned = record.get("planned_tokens")
        lr = float(record.get("lr", 0.0))
        achieved.moments.append(Moment(step + 1, record["stage"], token, lr, counts, visual, planned))
        achieved.source_epochs = dict(record.get("source_epochs") or achieved.source_epochs)
    return achieved


def differences(plan: CurriculumPlan, achieved: Achieved) -> list[Difference]:
    """By stage that the run has reached: each source, then pictures; planned for as many positions as were filled."""
    found: list[Difference] = []
    before = Moment(0, "", 0, 0.0, {}, 0.0, {})
    for place, moment in enumerate(achieved.moments):
        following = achieved.moments[place + 1] if place + 1 < len(achieved.moments) else None
        if following is not None and following.stage == moment.stage:
            continue
        counts = {name: count - before.source_tokens.get(name, 0.0) for name, count in moment.source_tokens.items()}
        filled = sum(counts.values())
        (first, first_visual), (last, last_visual) = plan.planned_before(before.token), plan.planned_before(moment.token)
        planned = {name: count - first[name] for name, count in last.items()}
        if moment.planned is not None and before.planned is not None:
            planned = {name: count - before.planned.get(name, 0.0) for name, count in moment.planned.items()}
        whole = sum(planned.values())
        for name in dict.fromkeys([*planned, *counts]):
            if planned.get(name, 0.0) or counts.get(name, 0.0):
                share = planned.get(name, 0.0) / whole if whole else None
                found.append(Difference(moment.stage, name, share, counts.get(name, 0.0) / max(1.0, filled), filled))
        visual = None
        if first_visual is not None and last_visual is not None and moment.token > before.token:
            visual = (last_visual - first_visual) / (moment.token - before.token)
        found.append(Difference(moment.stage, None, visual, (moment.visual - before.visual) / max(1.0, filled), filled))
        before = moment
    return found
