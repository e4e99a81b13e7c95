"""When each pass of a pipeline begins and ends, from how long each takes; idle time is what comes of it.

Ranks of one pipeline only: the others of a run do the same at the same time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from megatron_vlm.planning.schedule_order import Pass, order

#: passes after which a step is no longer simulated whole but from its steady state
_MOST_PASSES = 6000


@dataclass(frozen=True)
class Times:
    """Seconds of the passes: `forward[stage][chunk]`, `backward[stage][chunk]`; `transfer` between neighbouring stages."""

    forward: Sequence[Sequence[float]]
    backward: Sequence[Sequence[float]]
    transfer: float = 0.0

    @property
    def stages(self) -> int:
        return len(self.forward)

    @property
    def chunks(self) -> int:
        return len(self.forward[0])

    def busy(self, stage: int) -> float:
        """Seconds of work that a micro-batch is for a stage."""
        return sum(self.forward[stage]) + sum(self.backward[stage])


@dataclass(frozen=True)
class Event:
    stage: int
    step: Pass
    begin: float
    end: float


def events(times: Times, micro_batches: int) -> list[Event]:
    """Every pass of every stage. Raises RuntimeError if the stages wait for each other without end."""
    found: list[Event] = []
    _simulate(times, micro_batches, found)
    return found


def _simulate(times: Times, micro_batches: int, found: list[Event] | None = None) -> float:
    """When the last pass ends. Each stage goes on as far as what it needs has arrived, in turns until nothing moves."""
    stages, chunks = times.stages, times.chunks
    last, transfer = stages - 1, times.transfer if stages > 1 else 0.0
    todo = [order(rank, stages, chunks, micro_batches) for rank in range(stages)]
    place, free = [0] * stages, [0.0] * stages
    row = stages * chunks
    # when passes ended, at (micro-batch, chunk, stage) one after another; below 0: not yet
    forward, backward = [-1.0] * (row * micro_batches), [-1.0] * (row * micro_batches)
    moved = True
    while moved:
        moved = False
        for stage in range(stages):
            steps, at = todo[stage], place[stage]
            while at < len(steps):
                step = steps[at]
                ahead, chunk, number = step
                own = number * row + chunk * stages + stage
                # chunks follow one another, so that what comes before the first stage of one is the last of another
                if ahead:
                    ready = forward[own - 1] if stage or chunk else 0.0
                    wait = transfer if stage or chunk else 0.0
                elif stage == last and chunk == chunks - 1:
                    ready, wait = forward[own], 0.0
                else:
                    ready, wait = backward[own + 1], transfer
                if ready < 0:
                    break
                begin = max(free[stage], ready + wait)
                if ahead:
                    end = forward[own] = begin + times.forward[stage][chunk]
                else:
                    end = backward[own] = begin + times.backward[stage][chunk]
                free[stage] = end
                if found is not None:
                    found.append(Event(stage, step, begin, end))
                at += 1
                moved = True
            place[stage] = at
    if any(at < len(steps) for at, steps in zip(place, todo, strict=True)):
        raise RuntimeError(f"the schedule of {stages} stages x {chunks} chunks, {micro_batches} micro-batches, never ends")
    return max(free)


def span(times: Times, micro_batches: int) -> float:
    """Seconds from the first pass to the end of the last.

    A long step is simulated at two lengths and continued along the line through them: once the pipeline is full, each
    further round of micro-batches takes as long as the one before.
    """
    if times.stages == 1:
        return micro_batches * times.busy(0)
    unit = times.stages if times.chunks > 1 else 1
    per_round = 2 * times.stages * times.chunks * unit
    rounds, least = micro_batches // unit, max(6, 2 * times.stages // unit + 2)
    if rounds * per_round <= _MOST_PASSES or rounds <= least + 2:
        return _simulate(times, micro_batches)
    first, second = _simulate(times, least * unit), _simulate(times, (least + 2) * unit)
    return second + (rounds - least - 2) * (second - first) / 2


def least_span(times: Times, micro_batches: int) -> float:
    """A time below which no schedule comes: every stage has its work to do, waits for the first micro-batch to reach it and
    for its last gradient to reach the first stage."""
    most, before = 0.0, 0.0
    for stage in range(times.stages):
        most = max(most, before + micro_batches * times.busy(stage))
        before += times.forward[stage][0] + times.backward[stage][0] + 2 * times.transfer
    return most


def bubble(times: Times, micro_batches: int) -> float:
    """Share of the time that the busiest stage is idle, 0 to 1."""
    whole = span(times, micro_batches)
    return 1 - max(times.busy(stage) for stage in range(times.stages)) * micro_batches / whole
