"""What a run leaves behind: checkpoints, metrics, logs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class CheckpointConfig:
    #: folder of the run's checkpoints; null: `checkpoints` in the run folder
    directory: str | None = None
    #: steps between checkpoints; 0: only at the end and on a signal
    save_interval: int = 0
    #: save before the first step of every stage but the first
    save_at_stage_border: bool = True
    #: train on while a process beside each rank writes a copy of its part; false: the rank writes it, without a copy
    async_save: bool = True
    #: when a checkpoint cannot be written, such as to a full disk: end the run, or warn and train on to the next one. What
    #: cannot be written at the end or on a signal ends the run with an error in either case
    on_failed_save: Literal["stop", "continue"] = "stop"
    #: checkpoints kept, newest first; 0: all
    keep_last: int = 0
    #: checkpoints whose step is a multiple of this are kept besides; 0: none
    keep_every: int = 0
    #: auto: go on from the newest whole checkpoint if there is one; none: refuse to overwrite an earlier run; or a folder
    resume: str = "none"
    #: begin a new run, step 0 and data from its first document, with the weights of this checkpoint; a run that is resumed
    #: does not look at it
    start_from: str | None = None
    #: what of `start_from` is taken: its weights, or the moments of its optimiser too
    start_with: Literal["weights", "weights_and_optimizer"] = "weights"
    #: compare what is loaded with its checksums first
    verify: bool = True


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
