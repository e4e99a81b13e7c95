"""When each source enters: stages of one run, with mixture weights, frozen modules and learning-rate policy."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

#: in what the weights of a stage are counted, see StageConfig.measure
Measure = Literal["tokens", "visual_tokens", "samples"]
#: module -> how the names of its parameters begin
MODULES = {"language": "language_model.", "vision": "vision.", "projector": "projector."}


@dataclass(frozen=True)
class StageConfig:
    """A stretch of the run with one mixture, or with one that goes over into another.

    The end of a stage is `until`, `until_tokens` or `until_steps`, one of them; the last stage may leave all out. Borders
    are rounded up to whole steps.
    """

    name: str = "all"
    #: end as a share of the run, above 0 to 1: of its steps where schedule.train_steps is given, else of its positions
    until: float | None = None
    #: end in positions from the start of the run, padding included
    until_tokens: int | None = None
    #: end in steps from the start of the run
    until_steps: int | None = None
    #: source -> weight. tokens: share of all positions filled. samples: share of documents.
    #: visual_tokens: for a source with pictures, the share of all filled positions that are its picture tokens;
    #: the sources without pictures share what is left in proportion to their weights
    sources: dict[str, float] = field(default_factory=dict)
    measure: Measure = "tokens"
    #: how the weights go from `sources_from` to `sources`: at once, or over the first `ramp_share` of the stage's positions
    ramp: Literal["constant", "linear", "cosine"] = "constant"
    ramp_share: float = 1.0
    #: weights at the start of a ramp, 0 where not named; empty: those at the end of the stage before
    sources_from: dict[str, float] = field(default_factory=dict)
    #: null: data.sequence_length, schedule.micro_batch_size, schedule.global_batch_size
    sequence_length: int | None = None
    micro_batch_size: int | None = None
    global_batch_size: int | None = None
    #: side of the pictures that the encoder sees, in pixels; its positions are interpolated. null: model.vision.image_size
    image_size: int | None = None
    #: average n x n neighbouring rows of a picture into one after the projector, so that it takes n * n times fewer tokens
    image_pool: int = 1
    #: modality of a label (text, caption) -> factor on its loss; 1 where not named
    loss_weights: dict[str, float] = field(default_factory=dict)
    #: modules whose parameters are not trained in this stage: language, vision, projector, or a parameter-name prefix
    freeze: tuple[str, ...] = ()
    #: continue: go on along the law of the stage before (the run's own law at first). rewarm: rise from where the rate
    #: stands to the peak, then decay to the end of the run. restart: warm up from 0 and decay, all within this stage.
    #: constant: hold the rate at which the stage begins. cooldown: fall to the minimum at the end of the stage
    lr_policy: Literal["continue", "rewarm", "restart", "constant", "cooldown"] = "continue"
    #: steps of the rise of rewarm and restart
    rewarm_steps: int = 0
    #: peak of rewarm and restart. null: schedule.lr
    rewarm_lr: float | None = None
    #: where rewarm, restart and cooldown end. null: schedule.min_lr
    min_lr: float | None = None
    #: how rewarm, restart and cooldown fall. null: schedule.decay, for cooldown linear
    lr_decay: Literal["cosine", "linear", "wsd", "constant"] | None = None


@dataclass(frozen=True)
class CurriculumConfig:
    stages: tuple[StageConfig, ...] = field(default_factory=lambda: (StageConfig(),))
    #: source -> passes over its documents that the run may make; sources that are not named may be repeated without end
    max_epochs: dict[str, float] = field(default_factory=dict)
    #: when a source has had its passes: end the run with a checkpoint, go on without it (the others take its share in
    #: proportion to their weights), or repeat it and say so
    when_exhausted: Literal["stop", "reweight", "repeat"] = "stop"

    def ramp_start(self, stage: int) -> dict[str, float]:
        """The weights that the ramp of a stage begins with; empty where it has nothing to begin with."""
        chosen = self.stages[stage]
        return dict(chosen.sources_from or (self.stages[stage - 1].sources if stage else {}))

    def weights(self, stage: int, progress: float) -> dict[str, float]:
        """The weights of a stage where `progress` (0 to 1) of its positions are done: source -> weight.

        They are as configured, except on a ramp by tokens or samples: there only ratios matter, so both ends are scaled to
        sum to 1 first, and the shares themselves go straight (or by half a cosine) from one end to the other.
        """
        chosen = self.stages[stage]
        if chosen.ramp == "constant" or progress >= chosen.ramp_share:
            return dict(chosen.sources)
        done = max(0.0, progress) / chosen.ramp_share
        if chosen.ramp == "cosine":
            done = 0.5 - 0.5 * math.cos(math.pi * done)
        start, end = self.ramp_start(stage), chosen.sources
        if chosen.measure != "visual_tokens":
            start, end = _scaled(start), _scaled(end)
        names = [*end, *(name for name in start if name not in end)]
        return {n: start.get(n, 0.0) + (end.get(n, 0.0) - start.get(n, 0.0)) * done for n in names}


def _scaled(weights: dict[str, float]) -> dict[str, float]:
    total = sum(weights.values())
    return {name: weight / total for name, weight in weights.items()} if total > 0 else dict(weights)
