"""What a run does when a step, a rank or a replica goes wrong."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class FaultConfig:
    #: a bad step has a loss or gradient that is no finite number, or a loss that is a spike. skip: leave its update out;
    #: rewind: take the parameters of the last checkpoint and go on after the bad step, without the data in between;
    #: stop: end the run before the update
    on_bad_step: Literal["skip", "rewind", "stop"] = "skip"
    #: a spike is a loss this many standard deviations above the median of the last good steps; 0: none is looked for
    spike_deviations: float = 0.0
    #: and at least this much above it, in nats
    spike_rise: float = 0.1
    #: good steps that median and deviation are taken from; the count starts again at a stage border
    spike_window: int = 64
    #: good steps that must have been made before a spike is looked for
    spike_history: int = 32
    #: bad steps among the last `bad_step_window` ones that are borne; one more ends the run
    max_bad_steps: int = 8
    bad_step_window: int = 100
    #: seconds without a sign of life of a rank, or without progress of the run, after which all ranks end and name the
    #: rank that they waited for; 0: ranks are not watched, and `parallel.timeout_s` ends them
    timeout_s: float = 120.0
    #: the same for what may take long: the start, the first step of a stage, checkpoints and evaluations
    long_timeout_s: float = 1800.0
    #: steps between comparisons of the parameters of data-parallel replicas, which are also compared before a save; 0: never
    check_replicas_interval: int = 100
