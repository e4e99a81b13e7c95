"""The whole of a run's configuration."""

from __future__ import annotations

from dataclasses import dataclass, field

from megatron_vlm.config.bookkeeping import CheckpointConfig, LoggingConfig
from megatron_vlm.config.curriculum import CurriculumConfig
from megatron_vlm.config.data import DataConfig
from megatron_vlm.config.model import ModelConfig
from megatron_vlm.config.optimization import OptimizerConfig, ScheduleConfig
from megatron_vlm.config.parallel import ParallelConfig


@dataclass(frozen=True)
class RunConfig:
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    curriculum: CurriculumConfig = field(default_factory=CurriculumConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)

    @property
    def tokens_per_step(self) -> int:
        """Positions of one step, padding included."""
        return self.schedule.global_batch_size * self.data.sequence_length

    @property
    def total_steps(self) -> int:
        if self.schedule.train_steps is not None:
            return self.schedule.train_steps
        return -(-(self.schedule.train_tokens or 0) // self.tokens_per_step)

    def stage_ends(self) -> tuple[int, ...]:
        """The step before which each stage ends (exclusive), rounded up to whole steps; the last is total_steps."""
        ends = []
        for stage in self.curriculum.stages:
            if stage.until is not None:
                # the small constant keeps 0.8 * 100 from rounding up to 81
                ends.append(min(self.total_steps, -int(-(stage.until * self.total_steps - 1e-9) // 1)))
            elif stage.until_tokens is not None:
                ends.append(min(self.total_steps, -(-stage.until_tokens // self.tokens_per_step)))
            else:
                ends.append(self.total_steps)
        return tuple(ends)

    def stage_of(self, step: int) -> int:
        """Index of the stage that step `step` (from 0) belongs to."""
        for index, end in enumerate(self.stage_ends()):
            if step < end:
                return index
        return len(self.curriculum.stages) - 1
