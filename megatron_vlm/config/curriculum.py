"""When each source enters: stages of one run, with mixture weights, frozen modules and learning-rate policy."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

#: in what the weights of a stage are counted, see StageConfig.measure
Measure = Literal["tokens", "visual_tokens", "samples"]


@dataclass(frozen=True)
class StageConfig:
    """A stretch of the run with one mixture.

    The end of a stage is `until` (share of the run, 0 to 1), `until_tokens` (positions from the start of the run) or
    `until_steps` (steps from the start of the run); the last stage may leave all out. Borders are rounded up to whole steps.
    """

    name: str = "all"
    until: float | None = None
    until_tokens: int | None = None
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
    #: learning rate at the start of this stage: go on along the run's schedule, warm up again to `rewarm_lr`
    #: (then decay to the end of the run), or cool down linearly to the minimum over the stage
    lr_policy: Literal["continue", "rewarm", "cooldown"] = "continue"
    rewarm_steps: int = 0
    #: null: the run's peak learning rate
    rewarm_lr: float | None = None


@dataclass(frozen=True)
class CurriculumConfig:
    stages: tuple[StageConfig, ...] = field(default_factory=lambda: (StageConfig(),))
    #: source -> passes over its documents that the run may make; sources that are not named may be repeated without end
    max_epochs: dict[str, float] = field(default_factory=dict)
    #: when a source has had its passes: end the run with a checkpoint, go on without it (the others take its share in
    #: proportion to their weights), or repeat it and say so
    when_exhausted: Literal["stop", "reweight", "repeat"] = "stop"

    def weights(self, stage: int, progress: float) -> dict[str, float]:
        """The weights of a stage where `progress` (0 to 1) of its positions are done: source -> weight, as configured."""
        chosen = self.stages[stage]
        if chosen.ramp == "constant" or progress >= chosen.ramp_share:
            return dict(chosen.sources)
        done = max(0.0, progress) / chosen.ramp_share
        if chosen.ramp == "cosine":
            done = 0.5 - 0.5 * math.cos(math.pi * done)
        start = chosen.sources_from or (dict(self.stages[stage - 1].sources) if stage else {})
        names = [*chosen.sources, *(name for name in start if name not in chosen.sources)]
        return {n: start.get(n, 0.0) + (chosen.sources.get(n, 0.0) - start.get(n, 0.0)) * done for n in names}
