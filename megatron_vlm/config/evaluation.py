"""Tasks that are answered while a run trains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class EvaluationConfig:
    """Tasks as `megatron-vlm evaluate` answers them; scores go to metrics.jsonl (kind `tasks`) and TensorBoard."""

    #: task files (docs/evaluation.md), or folders of them
    tasks: tuple[str, ...] = ()
    #: steps between; the last step is always measured. 0: only there
    interval: int = 0
    #: instead: passes over the source of schedule.train_epochs between
    interval_epochs: float = 0.0
    #: questions of each task, the first ones of its file; 0: all
    limit: int = 0
    #: answer tasks with pictures again, under each other's pictures (shuffled) or without any (blind)
    controls: tuple[Literal["shuffled", "blind"], ...] = ()
