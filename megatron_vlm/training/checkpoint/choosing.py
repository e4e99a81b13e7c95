"""Which checkpoint a run goes on from: verified by all ranks together, and the same on all of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch.distributed as dist

from megatron_vlm.config.run import RunConfig
from megatron_vlm.errors import DataError, UserError
from megatron_vlm.training.checkpoint.checksums import content_damage
from megatron_vlm.training.checkpoint.folders import (
    all_checkpoints,
    checkpoint_folder,
    damage,
    holding_folder,
    in_line,
    names_one,
    no_checkpoint,
    recover,
    refuse_damaged,
    warn_of_damage,
)

T = TypeVar("T")


def _first_rank_says(ask: Callable[[], T]) -> T:
    """What rank 0 finds, on every rank: ranks that look for themselves may not see the same files."""
    answer = [ask() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(answer)
    return answer[0]  # type: ignore[return-value]


def shared_damage(checkpoint: Path, verify: bool) -> str | None:
    """What is wrong with a checkpoint, None when nothing is. Collective, the same answer on every rank.

    With `verify` each rank hashes its share of the blocks, on one thread: ranks are as many as a node has work for.
    """
    reason = _first_rank_says(lambda: damage(checkpoint))
    if reason is not None or not verify:
        return reason
    rank, size = dist.get_rank(), dist.get_world_size()
    found: list[list[str]] = [[] for _ in range(size)]
    dist.all_gather_object(found, content_damage(checkpoint, rank, size, workers=1))
    problems = list(dict.fromkeys(problem for some in found for problem in some))
    return "; ".join(problems[:5]) + (f"; and {len(problems) - 5} more" if problems[5:] else "") if problems else None


def require_undamaged(checkpoint: Path, verify: bool) -> Path:
    """Collective. Raises DataError on every rank when the checkpoint is damaged."""
    reason = shared_damage(checkpoint, verify)
    if reason is not None:
        raise refuse_damaged(checkpoint, reason)
    return checkpoint


def newest_whole(candidates: list[Path], verify: bool) -> Path | None:
    """The first of `candidates` that is not damaged, with a warning for those that are. Collective."""
    for checkpoint in candidates:
        reason = shared_damage(checkpoint, verify)
        if reason is None:
            return checkpoint
        if dist.get_rank() == 0:
            warn_of_damage(checkpoint, reason)
    return None


def choose_in(where: Path, verify: bool) -> Path:
    """`where` itself if it names one checkpoint, else the newest whole one of the run there. Collective.

    Raises:
        DataError: the one that was named is damaged, or there is none.
    """
    if _first_rank_says(lambda: names_one(where)):
        return require_undamaged(where, verify)
    folder = _first_rank_says(lambda: holding_folder(where))
    found = None if folder is None else newest_whole(_first_rank_says(lambda: in_line(folder)), verify)
    if found is None:
        raise no_checkpoint(where)
    return found


def choose_checkpoint(config: RunConfig) -> Path | None:
    """What `checkpoint.resume` means now; None where the run begins. Collective, the same on every rank.

    What a killed run left in this run's folder is put right first.

    Raises:
        UserError: with `none`, where the folder holds checkpoints.
        DataError: checkpoints are there, and none is whole; or a folder that was given is no whole checkpoint.
    """
    settings, folder = config.checkpoint, checkpoint_folder(config)
    _first_rank_says(lambda: recover(folder))
    candidates = _first_rank_says(lambda: in_line(folder) if all_checkpoints(folder) else [])
    if settings.resume == "none":
        if candidates:
            raise UserError(
                f"{folder} already holds checkpoints of a run; go on with --resume auto, or give another --logging.directory"
            )
        return None
    if settings.resume != "auto":
        return choose_in(Path(settings.resume), settings.verify)
    found = newest_whole(candidates, settings.verify)
    if found is None and candidates:
        raise DataError(f"{folder}: none of its {len(candidates)} checkpoints is whole; move them away to begin anew")
    return found
