"""In which order the ranks of a pipeline run their micro-batches: megatron-core's 1F1B and its interleaved schedule.

Narayanan et al. 2021 (arXiv 2104.04473), section 2.2. A micro-batch goes through `virtual` chunks on each rank.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple


class Pass(NamedTuple):
    """Forward or backward of one micro-batch through one chunk of a rank."""

    forward: bool
    chunk: int
    micro_batch: int


def warm_up(rank: int, pipeline: int, virtual: int, micro_batches: int) -> int:
    """Forward passes that a rank makes before its first backward one of the steady state."""
    passes = pipeline - rank - 1
    if virtual > 1:
        passes = 2 * passes + (virtual - 1) * pipeline
    return min(passes, micro_batches * virtual)


@lru_cache(maxsize=512)
def order(rank: int, pipeline: int, virtual: int, micro_batches: int) -> tuple[Pass, ...]:
    """All passes of a rank in order. With `virtual` above 1, micro-batches are a multiple of the pipeline's size.

    Raises:
        ValueError: micro-batches that the interleaved schedule cannot deal out.
    """
    if virtual > 1 and micro_batches % pipeline:
        raise ValueError(f"{micro_batches} micro-batches are not a multiple of the pipeline's {pipeline} stages")
    total = micro_batches * virtual
    ahead = warm_up(rank, pipeline, virtual, micro_batches)
    passes = [_forward(n, pipeline, virtual) for n in range(ahead)]
    for n in range(total - ahead):
        passes += [_forward(n + ahead, pipeline, virtual), _backward(n, pipeline, virtual)]
    passes += [_backward(n, pipeline, virtual) for n in range(total - ahead, total)]
    return tuple(passes)


def _forward(number: int, pipeline: int, virtual: int) -> Pass:
    if virtual == 1:
        return Pass(True, 0, number)
    group, within = divmod(number, pipeline * virtual)
    return Pass(True, within // pipeline, group * pipeline + within % pipeline)


def _backward(number: int, pipeline: int, virtual: int) -> Pass:
    forward = _forward(number, pipeline, virtual)
    return Pass(False, virtual - 1 - forward.chunk, forward.micro_batch)


def peak_in_flight(rank: int, pipeline: int, virtual: int, micro_batches: int, sizes: list[float]) -> float:
    """The most that a rank holds at once, where a chunk holds `sizes[chunk]` from a forward pass to its backward one."""
    enough = pipeline * 3 if virtual == 1 else pipeline * (virtual + 2)  # no schedule holds more later than by then
    held = most = 0.0
    for step in order(rank, pipeline, virtual, min(micro_batches, enough)):
        held += sizes[step.chunk] if step.forward else -sizes[step.chunk]
        most = max(most, held)
    return most
