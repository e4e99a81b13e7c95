"""What one step trains on, decided before anything of it is read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from megatron_vlm.config.steps import StepShape
from megatron_vlm.data.documents import Span


@dataclass(frozen=True)
class MixtureReport:
    """The run's mixture after a step, from its start: positions by source, of pictures among them, padded; shares."""

    source_tokens: dict[str, int] = field(default_factory=dict)
    source_visual: dict[str, int] = field(default_factory=dict)
    source_documents: dict[str, int] = field(default_factory=dict)
    #: passes over each source's documents, with the part of the one that goes on
    source_epochs: dict[str, float] = field(default_factory=dict)
    #: shares of the stage so far: of filled positions that are pictures', as planned and as they came
    planned_visual_share: float = 0.0
    achieved_visual_share: float = 0.0
    #: positions by source as planned, from the start of the run
    planned_tokens: dict[str, float] = field(default_factory=dict)
    padded: int = 0


@dataclass(frozen=True)
class StepPlan:
    """A global batch: `shape.global_batch_size` packs in order, the same on every rank and for every layout.

    `state` is the planner's after this step: plain numbers, texts and lists, a few hundred bytes of JSON. A planner that
    """

    step: int
    shape: StepShape
    packs: tuple[tuple[Span, ...], ...]
    state: dict[str, Any]
    report: MixtureReport
    digest: str = ""
