"""Which sizes of context parallelism are worth a try, and whether a layout's ranks can divide the rows of a run."""

from __future__ import annotations

from collections.abc import Sequence

from megatron_vlm.config.precision import BLOCK
from megatron_vlm.config.run import RunConfig
from megatron_vlm.planning.run_stretches import Stretch

#: of the longest row, the fewest positions that a rank is left with. Shorter rows fit a rank that recomputes, and
#: data-parallel ranks then do the same work without a gather in each layer; so most searches try no other size than 1
LEAST_POSITIONS = 4096


def context_sizes(stretches: Sequence[Stretch], gpus: int) -> list[int]:
    """1, and the powers of two that divide the GPUs and leave each rank `LEAST_POSITIONS` of the run's longest rows."""
    most = max((stretch.shape.sequence_length for stretch in stretches), default=0) // LEAST_POSITIONS
    sizes = [1]
    while 2 * sizes[-1] <= most and gpus % (2 * sizes[-1]) == 0:
        sizes.append(2 * sizes[-1])
    return sizes


def rows_divide(config: RunConfig, stretches: Sequence[Stretch]) -> bool:
    """Whether ranks of `config.parallel` can have alike many positions of every micro-batch, in FP8 whole blocks of them:
    what `shape_checks.row_problems` and `precision_problems` ask."""
    parallel, recipe = config.parallel, config.precision.fp8
    multiple = parallel.row_multiple
    rows = {stretch.shape.micro_batch_size * stretch.shape.sequence_length for stretch in stretches}
    if recipe == "none":
        return not any(row % multiple for row in rows)
    return not any(row % multiple or row % (parallel.position_ranks * BLOCK[recipe]) for row in rows)
