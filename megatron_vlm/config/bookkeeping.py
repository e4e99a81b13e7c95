"""What a run leaves behind: checkpoints, metrics, logs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CheckpointConfig:
    #: folder of the run's checkpoints; null: `checkpoints` in the run folder
    directory: str | None = None
    #: steps between checkpoints; 0: only at the end and on a signal
    save_interval: int = 0
    #: checkpoints kept, newest first; 0: all
    keep_last: int = 0
    #: auto: go on from the newest checkpoint if there is one; none: refuse to overwrite an earlier run; or a folder
    resume: str = "none"
    #: save before the first step of every stage but the first
    save_at_stage_border: bool = True


@dataclass(frozen=True)
class LoggingConfig:
    #: folder of the run: resolved configuration, metrics.jsonl, tensorboard/, checkpoints/
    directory: str = "runs/default"
    log_interval: int = 10
    #: steps between measurements on the validation sources; 0: never
    eval_interval: int = 0
    tensorboard: bool = True
    #: peak FLOP/s of one device, for the utilisation; null: not reported
    peak_flops: float | None = None
