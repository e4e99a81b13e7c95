"""Going back to the parameters of the last checkpoint while the data goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist

from megatron_vlm.config.run import RunConfig
from megatron_vlm.training import checkpoint as checkpoints
from megatron_vlm.training.engine import Engine


def last_checkpoint(config: RunConfig, not_after: int, ours: Callable[[int], bool]) -> Path | None:
    """This run's newest whole checkpoint of a step up to `not_after`, the same on every rank. Every rank calls it. `ours`
    says of a step whether its checkpoint is of this run (`Saver.is_of_this_line`).

    Damaged ones are passed over with a warning, compared with their checksums where `checkpoint.verify` says so.
    """
    places: list[list[Path]] = [[]]
    if dist.get_rank() == 0:
        whole = checkpoints.complete_checkpoints(checkpoints.checkpoint_folder(config))
        steps = {place: int(checkpoints.read_run_file(place)["step"]) for place in whole}
        places = [[place for place in whole if steps[place] <= not_after and ours(steps[place])]]
    dist.broadcast_object_list(places, src=0)
    return checkpoints.newest_whole(places[0][::-1], config.checkpoint.verify)


def rewind(engine: Engine, config: RunConfig, place: Path) -> dict[str, Any]:
    """Take weights, moments and the count of updates from the checkpoint `place`; the engine's stage stays what it is.

    Every rank calls it. Returns the checkpoint's run file.

    Raises:
        DataError: the checkpoint does not fit this run.
    """
    run = checkpoints.read_run_file(place)
    checkpoints.go_on(engine, config, place, run, engine.stage)
    return run
