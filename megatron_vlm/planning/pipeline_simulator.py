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
    stages, chunks = times.stages, times.chunks
    todo = [order(rank, stages, chunks, micro_batches) for rank in range(stages)]
    place, free = [0] * stages, [0.0] * stages
    ended: dict[tuple[bool, int, int, int], float] = {}
    found: list[Event] = []
    moved = True
    while moved:
        moved = False
        for stage in range(stages):
            while place[stage] < len(todo[stage]):
                step = todo[stage][place[stage]]
                ready = _ready(ended, times, stage, step)
                if ready is None:
                    break
                begin = max(free[stage], ready)
                taken = (times.forward if step.forward else times.backward)[stage][step.chunk]
                free[stage] = begin + taken
                ended[(step.forward, stage, step.chunk, step.micro_batch)] = free[stage]
                found.append(Event(stage, step, begin, free[stage]))
                place[stage] += 1
                moved = True
    if any(at < len(steps) for at, steps in zip(place, todo, strict=True)):
        raise RuntimeError(f"the schedule of {stages} stages x {chunks} chunks, {micro_batches} micro-batches, never ends")
    return found


def _ready(ended: dict[tuple[bool, int, int, int], float], times: Times, stage: int, step: Pass) -> float | None:
    """When what a pass needs has arrived; None: not made yet."""
    stages, chunk, number = times.stages, step.chunk, step.micro_batch
    last = stages - 1
    if step.forward:
        if stage == 0 and chunk == 0:
            return 0.0
        source = (True, stage - 1, chunk, number) if stage else (True, last, chunk - 1, number)
    elif stage == last and chunk == times.chunks - 1:
        return ended.get((True, stage, chunk, number))
    else:
        source = (False, stage + 1, chunk, number) if stage < last else (False, 0, chunk + 1, number)
    arrived = ended.get(source)
    return None if arrived is None else arrived + (times.transfer if stages > 1 else 0.0)


def span(times: Times, micro_batches: int) -> float:
    """Seconds from the first pass to the end of the last.

    A long step is simulated at two lengths and continued along the line through them: once the pipeline is full, each
    further round of micro-batches takes as long as the one before.
    """
    if times.stages == 1:
        return micro_batches * times.busy(0)
    unit = times.stages if times.chunks > 1 else 1
    per_round = 2 * times.stages * times.chunks * unit
    rounds, least = micro_batches // unit, max(6, 4 * times.stages // unit)
    if rounds * per_round <= _MOST_PASSES or rounds <= least + 2:
        return _end(times, micro_batches)
    first, second = _end(times, least * unit), _end(times, (least + 2) * unit)
    return second + (rounds - least - 2) * (second - first) / 2


def least_span(times: Times, micro_batches: int) -> float:
    """A time below which no schedule comes: every stage has its work to do, waits for the first micro-batch to reach it and
    for its last gradient to reach the first stage."""
    most, before = 0.0, 0.0
    for stage in range(times.stages):
        most = max(most, before + micro_batches * times.busy(stage))
        before += times.forward[stage][0] + times.backward[stage][0] + 2 * times.transfer
    return most


def _end(times: Times, micro_batches: int) -> float:
    return max(event.end for event in events(times, micro_batches))


def bubble(times: Times, micro_batches: int) -> float:
    """Share of the time that the busiest stage is idle, 0 to 1."""
    whole = span(times, micro_batches)
    return 1 - max(times.busy(stage) for stage in range(times.stages)) * micro_batches / whole
