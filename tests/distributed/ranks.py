"""Real gloo ranks for tests: forked from this process, so that megatron-core is imported once and not by every rank."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import megatron_vlm.training.loop  # noqa: F401  megatron-core is in this process before any rank is forked


def _child(rank: int, world_size: int, store: str, function: Callable[..., Any], args: tuple, pipe: Any) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_RANK=str(rank))
    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{store}",
            rank=rank,
            world_size=world_size,
            timeout=timedelta(seconds=120),
        )
        result = function(*args)
        if dist.is_initialized():
            dist.barrier()
        pipe.send(("done", result))
    except BaseException:
        pipe.send(("failed", traceback.format_exc()))
    finally:
        pipe.close()
    os._exit(0)  # no teardown: gloo's threads do not survive a fork's exit handlers


def _receive(pipe: Any) -> tuple[str, Any]:
    try:
        return pipe.recv()
    except EOFError:
        return "failed", "the process died without a word (killed, or crashed in native code)"


def run_ranks(world_size: int, function: Callable[..., Any], *args: Any, timeout: float = 240) -> list[Any]:
    """`function(*args)` on each of `world_size` gloo ranks; what each returned, by rank.

    Raises AssertionError with the traceback of the first rank that failed, or on timeout.
    """
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        store = str(Path(folder) / "store")
        ranks = []
        for rank in range(world_size):
            mine, theirs = context.Pipe(duplex=False)
            process = context.Process(target=_child, args=(rank, world_size, store, function, args, theirs))
            process.start()
            theirs.close()
            ranks.append((process, mine))
        results: list[Any] = []
        failure = None
        for rank, (_, pipe) in enumerate(ranks):
            if failure is None and pipe.poll(timeout):
                kind, value = _receive(pipe)
                if kind == "failed":
                    failure = f"rank {rank} of {world_size} failed:\n{value}"
                results.append(value)
            elif failure is None:
                failure = f"rank {rank} of {world_size} gave no answer in {timeout} s"
        if failure is not None:  # the rank that failed first is rarely rank 0: the others hang on it
            for rank, (_, pipe) in enumerate(ranks):
                if pipe.poll(1):
                    kind, value = _receive(pipe)
                    if kind == "failed":
                        failure += f"\nrank {rank}:\n{value}"
        for process, _ in ranks:
            if failure is not None:
                process.kill()
            process.join()
        assert failure is None, failure
        return results
