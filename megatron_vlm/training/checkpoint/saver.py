"""Saving while training goes on: copy, write beside the steps, and, once all ranks are done, publish on all alike."""

from __future__ import annotations

import json
import secrets
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from megatron_vlm import __version__
from megatron_vlm.config.loading import to_map, to_yaml
from megatron_vlm.config.run import RunConfig
from megatron_vlm.data import atomic_file
from megatron_vlm.errors import UserError
from megatron_vlm.training.checkpoint.checksums import CHECKSUM_FILE, checksum_of, checksum_text
from megatron_vlm.training.checkpoint.containers import Containers
from megatron_vlm.training.checkpoint.folders import (
    RUN_FILE,
    checkpoint_folder,
    prune,
    publish,
    step_folder,
)
from megatron_vlm.training.checkpoint.planned import PlannedSave
from megatron_vlm.training.checkpoint.state import SHARDING, saved_state
from megatron_vlm.training.checkpoint.writer import WriterProcess, Written
from megatron_vlm.training.engine import Engine

#: what a rank that cannot write raises; torch makes a RuntimeError of a stream's OSError
_FAILURES = (OSError, RuntimeError, MemoryError)


@dataclass(frozen=True)
class Stop:
    """Seconds for which a save kept this rank from its next step, and what they went into."""

    #: every rank names the shards that it holds
    gather: float
    #: which rank writes what
    plan: float
    #: into shared memory; where the rank writes by itself, the writing
    copy: float

    @property
    def seconds(self) -> float:
        return self.gather + self.plan + self.copy


@dataclass
class _Pending:
    """A save between its copy and its name."""

    partial: Path
    final: Path
    planned: PlannedSave
    run: dict[str, Any]
    begun: float
    stop: Stop
    written: Written | None = None  # known at once where the rank wrote by itself


class Saver:
    """Saves the checkpoints of a run, one at a time. Every method but `close` is called by all ranks alike.

    `say` prints for a person, on rank 0 only.
    """

    def __init__(self, config: RunConfig, device: torch.device, say: Callable[[str], None] | None = None) -> None:
        self.config, self.device = config, device
        self.say = say or (lambda text: None)
        self.last: Path | None = None  # the last one that was published
        #: the step that the run went on from, -1: from none
        self.resumed_at = -1
        self._saved: set[int] = set()
        self.last_stop: Stop | None = None  # of the save before
        self.failures = 0
        self._pending: _Pending | None = None
        self._writer: WriterProcess | None = None
        self._containers = Containers()
        self._validated_stage: int | None = None

    @property
    def pending(self) -> bool:
        """Whether a save is being written; the same on all ranks."""
        return self._pending is not None

    def save(self, engine: Engine, step: int, data_state: dict[str, Any], extra: dict[str, Any], last: bool = True) -> None:
        """Save the moment before step `step`; an earlier save is finished first.

        With `checkpoint.async_save` it returns when this rank's part is copied, unless it is the `last` one: that is written
        and published when it returns.

        Raises:
            UserError: it cannot be written, and is the last one or `checkpoint.on_failed_save` is stop.
        """
        self._finish(forgive=last)  # what went wrong before is no reason not to try the last one
        pending = self._begin(engine, step, data_state, extra)
        if isinstance(pending, str):
            self._failed(step_folder(checkpoint_folder(self.config), step), pending, forgive=False, last=last)
            return
        self._pending = pending
        begun = time.perf_counter()
        if self.config.checkpoint.async_save and not last:
            self._hand_over(pending)
        else:
            pending.written = self._write_here(pending)
        pending.stop = self.last_stop = replace(pending.stop, copy=time.perf_counter() - begun)
        if last or not self.config.checkpoint.async_save:
            self._finish(last=last)

    def is_of_this_line(self, step: int) -> bool:
        """Whether a checkpoint of `step` is what this run came from or saved: a run that was taken back on purpose leaves
        later ones of its old line in the folder."""
        return step <= self.resumed_at or step in self._saved

    def poll(self) -> None:
        """At a step's border: publish the save if all ranks have written. Raises as `save`."""
        if self._pending is None:
            return
        busy = self._result(wait=False) is None
        flag = torch.tensor([float(busy)], device=self.device)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        if not flag.item():
            self._finish()

    def finish(self) -> None:
        """Wait until the save that is being written is published. Raises as `save`."""
        self._finish()

    def close(self) -> None:
        """End the writer process; what is still being written is given up. No other rank is asked."""
        self._pending = None
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    # -- parts of a save -------------------------------------------------------------------------------------------

    def _begin(self, engine: Engine, step: int, data_state: dict[str, Any], extra: dict[str, Any]) -> _Pending | str:
        """The plan, or why there is no folder for it. The same on all ranks."""
        begun = time.perf_counter()
        folder = checkpoint_folder(self.config)
        final = step_folder(folder, step)
        # a name of its own for every attempt: a writer that a dead node left behind cannot write into a later one
        attempt: list[str | None] = [f".{final.name}.{secrets.token_hex(4)}.partial", None]
        if dist.get_rank() == 0:
            try:
                (folder / str(attempt[0])).mkdir(parents=True)
            except OSError as error:
                attempt[1] = str(error)
        dist.broadcast_object_list(attempt)
        if attempt[1] is not None:
            return attempt[1]
        partial = folder / str(attempt[0])
        validate = self._validated_stage != engine.stage
        with engine.whole_parameters():
            state = saved_state(engine)
            gathered = time.perf_counter()
            planned = PlannedSave(state, partial, dict(SHARDING), validate)
        self._validated_stage = engine.stage
        run = {
            "step": step,
            "stage": engine.stage,
            "version": __version__,
            "distributed_optimizer": self.config.parallel.use_distributed_optimizer,
            "data": data_state,
            "config": to_map(self.config),
            **extra,
        }
        # as text now: the planner goes on
        stop = Stop(gathered - begun, time.perf_counter() - gathered, 0.0)
        return _Pending(partial, final, planned, json.loads(json.dumps(run)), begun, stop)

    def _hand_over(self, pending: _Pending) -> None:
        try:
            if self._writer is None:
                self._writer = WriterProcess()
            files = pending.planned.copy_to(self._writer.memory, self._containers)
        except _FAILURES as error:
            pending.written = Written({}, f"no copy could be made: {error}")
            return
        self._writer.submit(files)

    def _write_here(self, pending: _Pending) -> Written:
        try:
            return Written(pending.planned.write_files(self._containers))
        except _FAILURES as error:
            return Written({}, _reason(error))

    def _result(self, wait: bool) -> Written | None:
        assert self._pending is not None
        if self._pending.written is None:
            assert self._writer is not None
            self._pending.written = self._writer.result(wait)
        return self._pending.written

    def _finish(self, forgive: bool = False, last: bool = False) -> None:
        """Publish what is pending, or give it up on all ranks alike."""
        if self._pending is None:
            return
        pending, written = self._pending, self._result(wait=True)
        self._pending = None
        pending.planned.release()
        assert written is not None
        mine = (pending.planned.error or written.error, written.files, pending.planned.results)
        gathered: list[Any] = [None] * dist.get_world_size()
        dist.gather_object(mine, gathered if dist.get_rank() == 0 else None)
        outcome: list[str | None] = [None]
        if dist.get_rank() == 0:
            failed = [f"rank {rank}: {error}" for rank, (error, _, _) in enumerate(gathered) if error]
            outcome[0] = "; ".join(failed) or self._publish(pending, gathered)
            if outcome[0]:
                shutil.rmtree(pending.partial, ignore_errors=True)
        dist.broadcast_object_list(outcome)
        if outcome[0] is not None:
            self._failed(pending.final, outcome[0], forgive, last)
            return
        self.last = pending.final
        self._saved.add(int(pending.run["step"]))
        seconds = time.perf_counter() - pending.begun
        self.say(f"saved {pending.final} in {seconds:.1f} s (training stopped for {pending.stop.seconds:.2f} s)")

    def _publish(self, pending: _Pending, gathered: list[Any]) -> str | None:
        """On rank 0: the small files, checksums, the name, `latest`. Returns why it could not be done."""
        partial = pending.partial
        try:
            pending.planned.write_contents([results for _, _, results in gathered])
            (partial / RUN_FILE).write_text(json.dumps(pending.run), encoding="utf-8")
            (partial / "config.yaml").write_text(to_yaml(self.config), encoding="utf-8")
            large = {Path(path).name: checksum for _, files, _ in gathered for path, checksum in files.items()}
            small = [path for path in sorted(partial.iterdir()) if path.name not in large]
            for path in small:
                atomic_file.sync_file(path)
            checksums = {**large, **{path.name: checksum_of(path) for path in small}}
            (partial / CHECKSUM_FILE).write_text(checksum_text(checksums), encoding="utf-8")
            atomic_file.sync_file(partial / CHECKSUM_FILE)
            atomic_file.sync_folder(partial)
            publish(partial, pending.final)
        except _FAILURES as error:
            return _reason(error)
        try:
            prune(pending.final.parent, pending.final, self.config.checkpoint.keep_last, self.config.checkpoint.keep_every)
        except OSError as error:  # the new one is there: not a reason to stop
            print(f"megatron-vlm: old checkpoints could not be removed: {error}", file=sys.stderr, flush=True)
        return None

    def _failed(self, final: Path, reason: str, forgive: bool, last: bool) -> None:
        self.failures += 1
        folder = final.parent
        room = _free_space(folder)
        text = f"{final} could not be saved: {reason} ({room}); the last good checkpoint is {self.last or 'an earlier one'}"
        if not forgive and (last or self.config.checkpoint.on_failed_save == "stop"):
            raise UserError(f"{text}; make room and go on with --resume auto")
        if dist.get_rank() == 0:
            print(f"megatron-vlm: {text}; training goes on", file=sys.stderr, flush=True)


def _reason(error: BaseException) -> str:
    """What the system said, where torch's error came of one of the system."""
    inner: BaseException | None = error
    while inner is not None and not isinstance(inner, OSError):
        inner = inner.__cause__ or inner.__context__
    return str(inner or error)


def _free_space(folder: Path) -> str:
    try:
        return f"{shutil.disk_usage(folder).free / 1e6:,.0f} MB are free in {folder}"
    except OSError:
        return f"{folder} cannot be read"
