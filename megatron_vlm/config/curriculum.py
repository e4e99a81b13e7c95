"""When each source enters: stages of one run, with mixture weights, frozen modules and learning-rate policy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

#: in what the weights of a stage are counted, see StageConfig.measure
Measure = Literal["tokens", "visual_tokens", "samples"]


@dataclass(frozen=True)
class StageConfig:
    """A stretch of the run with one mixture.

    The end of a stage is `until` (share of the run, 0 to 1) or `until_tokens` (positions from the start of the run); the
    last stage may leave both out. Borders are rounded up to whole steps.
    """

    name: str = "all"
    until: float | None = None
    until_tokens: int | None = None
    #: source -> weight. tokens: share of all positions filled. samples: share of documents.
    #: visual_tokens: for a source with pictures, the share of all filled positions that are its picture tokens;
    #: the sources without pictures share what is left in proportion to their weights
    sources: dict[str, float] = field(default_factory=dict)
    measure: Measure = "tokens"
    #: modules whose parameters are not trained in this stage: language, vision, projector, or a parameter-name prefix
    freeze: tuple[str, ...] = ()
    #: learning rate at the start of this stage: go on along the run's schedule, warm up again to `rewarm_lr`
    #: (then decay to the end of the run), or cool down linearly to the minimum over the stage
    lr_policy: Literal["continue", "rewarm", "cooldown"] = "continue"
    rewarm_steps: int = 0
    #: null: the run's peak learning rate
    rewarm_lr: float | None = None


@dataclass(frozen=True)
class CurriculumConfig:
    stages: tuple[StageConfig, ...] = field(default_factory=lambda: (StageConfig(),))
