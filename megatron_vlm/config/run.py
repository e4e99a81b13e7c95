"""The whole of a run's configuration."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate

from megatron_vlm.config.bookkeeping import CheckpointConfig, LoggingConfig
from megatron_vlm.config.curriculum import CurriculumConfig
from megatron_vlm.config.data import DataConfig
from megatron_vlm.config.evaluation import EvaluationConfig
from megatron_vlm.config.faults import FaultConfig
from megatron_vlm.config.loader import LoaderConfig
from megatron_vlm.config.model import ModelConfig
from megatron_vlm.config.optimization import OptimizerConfig, ScheduleConfig
from megatron_vlm.config.parallel import ParallelConfig
from megatron_vlm.config.performance import PerformanceConfig
from megatron_vlm.config.precision import PrecisionConfig
from megatron_vlm.config.steps import Segment, StepShape, run_segments


@dataclass(frozen=True)
class RunConfig:
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    curriculum: CurriculumConfig = field(default_factory=CurriculumConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    faults: FaultConfig = field(default_factory=FaultConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    precision: PrecisionConfig = field(default_factory=PrecisionConfig)
    performance: PerformanceConfig = field(default_factory=PerformanceConfig)

    @cached_property
    def segments(self) -> tuple[Segment, ...]:
        """The steps of the run in stretches of one shape, in order; empty if the run has no step."""
        return tuple(run_segments(self))

    @property
    def total_steps(self) -> int:
        """Steps of the run. Where the stages end before it, the last one's shape is taken to go on."""
        if self.schedule.train_steps is not None:
            return self.schedule.train_steps
        tokens = self.schedule.train_tokens or 0
        if not self.segments:
            return -(-tokens // (self.schedule.global_batch_size * self.data.sequence_length))
        last = self.segments[-1]
        done = last.first_token + last.steps * last.tokens_per_step
        return last.end_step + max(0, -(-(tokens - done) // last.tokens_per_step))

    @property
    def end_step(self) -> int:
        """The step before which training ends: the run's last, or `schedule.exit_step` where that comes first."""
        leave = self.schedule.exit_step
        return self.total_steps if leave is None else min(leave, self.total_steps)

    @property
    def total_packs(self) -> int:
        return self.packs_before(self.total_steps)

    @property
    def total_tokens(self) -> int:
        """Positions of the whole run, padding included."""
        return self.tokens_before(self.total_steps)

    def segment_of(self, step: int) -> Segment:
        """The segment that step `step` (from 0) belongs to; the last one after the end of the run."""
        place = bisect_right(self.segments, step, key=lambda segment: segment.first_step) - 1
        return self.segments[max(0, place)]

    def shape_of(self, step: int) -> StepShape:
        return self.segment_of(step).shape

    def packs_before(self, step: int) -> int:
        """Packs of the steps before `step`."""
        if not self.segments:
            return 0
        segment = self.segment_of(step)
        return segment.first_pack + (step - segment.first_step) * segment.shape.global_batch_size

    def tokens_before(self, step: int) -> int:
        """Positions of the steps before `step`, padding included."""
        if not self.segments:
            return 0
        segment = self.segment_of(step)
        return segment.first_token + (step - segment.first_step) * segment.tokens_per_step

    def stage_ends(self) -> tuple[int, ...]:
        """The step before which each stage ends (exclusive); a stage without steps ends where the one before it does."""
        ends = [0] * len(self.curriculum.stages)
        for segment in self.segments:
            ends[segment.shape.stage] = segment.end_step
        return tuple(accumulate(ends, max))

    def stage_of(self, step: int) -> int:
        """Index of the stage that step `step` (from 0) belongs to."""
        return self.shape_of(step).stage if self.segments else 0
