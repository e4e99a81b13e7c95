"""A thread of the rank that plans ahead, hands micro-batches to workers, and sees to workers that die or hang."""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing import Pipe
from multiprocessing.connection import wait
from typing import Any

from megatron_vlm import errors
from megatron_vlm.config.loader import LoaderConfig
from megatron_vlm.config.steps import StepShape
from megatron_vlm.data.documents import Span
from megatron_vlm.data.loader.messages import FailedReply, MadeReply, MakerSpec, MicroBatchJob, ReadyReply, Reply, WorkerTask
from megatron_vlm.data.loader.slots import SharedSlots
from megatron_vlm.data.loader.worker_process import IN_HAND, WorkerProcess
from megatron_vlm.data.named_documents import documents_by_source, named_documents
from megatron_vlm.data.step_plan import StepPlan
from megatron_vlm.errors import DataError, UserError

#: workers that may die over one micro-batch, or one after another before they are ready, until the run ends
MOST_DEATHS = 3
#: seconds between looks at the clock; of a longer gap no more counts as a worker's time, as then it was this process that
#: stood still
_TICK = 1.0
#: seconds that a worker may take to start, on a busy machine or from a slow disk
_START_SECONDS = 60.0


def cut_packs(plan: StepPlan, share: Sequence[int]) -> list[list[tuple[Span, ...]]]:
    """The packs of a step that a rank computes, by number, micro-batch by micro-batch."""
    packs, micro = [plan.packs[number] for number in share], plan.shape.micro_batch_size
    return [packs[first : first + micro] for first in range(0, len(packs), micro)]


def say_to_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@dataclass(frozen=True, slots=True)
class LoaderFaults:
    """Workers that were replaced since the start: that died by themselves, and that were killed as they hung."""

    died: int = 0
    hung: int = 0


@dataclass(slots=True)
class MicroBatchWork:
    """A micro-batch on its way: made, failed, or neither yet."""

    number: int
    packs: Sequence[Sequence[Span]]
    shape: StepShape
    slot: int = -1
    made: MadeReply | None = None
    error: Exception | None = None
    deaths: int = 0

    @property
    def done(self) -> bool:
        return self.made is not None or self.error is not None


@dataclass(slots=True)
class StepWork:
    plan: StepPlan
    work: list[MicroBatchWork]

    @property
    def done(self) -> bool:
        return all(work.done for work in self.work)


@dataclass(slots=True)
class _Ahead:
    """What is shared with the training thread, under `changed`."""

    changed: threading.Condition = field(default_factory=threading.Condition)
    steps: deque[StepWork] = field(default_factory=deque)
    free: deque[int] = field(default_factory=deque)
    #: how planning ended, to be raised after the last of `steps`
    end: BaseException | None = None
    #: a defect of the loader itself, or workers that cannot start: raised at once
    fatal: BaseException | None = None
    closing: bool = False


class Dispatcher:
    """Starts with the first `take`, so that nothing is planned before it is wanted. Arguments as of `BatchLoader`."""

    def __init__(
        self,
        spec: MakerSpec,
        slots: SharedSlots,
        plans: Iterator[StepPlan],
        share: Callable[[StepPlan], list[int]],
        config: LoaderConfig,
        say: Callable[[str], None],
    ) -> None:
        self.spec, self.config, self.faults = spec, config, LoaderFaults()
        self._slots, self._plans, self._share, self._say = slots, plans, share, say
        self._task = WorkerTask(spec, slots.count, slots.size)
        self._ahead = _Ahead(free=deque(range(slots.count)))
        self._workers: list[WorkerProcess[MicroBatchWork]] = []
        self._queue: deque[MicroBatchWork] = deque()
        self._numbers = 0
        self._failed_starts = 0
        self._clock, self._looked = 0.0, time.monotonic()
        self._woken, self._wake = Pipe(duplex=False)
        self._thread = threading.Thread(target=self._run, name="megatron_vlm-loader", daemon=True)

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers that there are."""
        return [worker.pid for worker in list(self._workers)]

    # -- the training's side -----------------------------------------------------------------------------------------

    def take(self) -> StepWork:
        """The next step, when all of it is there.

        Raises StopIteration at the end of the plans, and what failed in the step: the first of its errors.
        """
        if self._thread.ident is None:
            self._thread.start()
        ahead = self._ahead
        with ahead.changed:
            # woken now and then, so that a signal's handler runs
            while not (ahead.fatal or ahead.closing or self._head_is_there()):
                ahead.changed.wait(0.5)
            if ahead.closing:
                raise RuntimeError("the loader is closed")
            if ahead.fatal is not None:
                raise ahead.fatal
            if not ahead.steps:
                assert ahead.end is not None
                raise ahead.end
            step = ahead.steps.popleft()
        self._knock()
        for work in step.work:
            if work.error is not None:
                raise work.error
        return step

    def _head_is_there(self) -> bool:
        """The next step is made, or there is none."""
        ahead = self._ahead
        return ahead.steps[0].done if ahead.steps else ahead.end is not None

    def release(self, step: StepWork) -> None:
        """Give the step's slots back."""
        with self._ahead.changed:
            self._ahead.free.extend(work.slot for work in step.work)
        self._knock()

    def close(self) -> None:
        """End the thread and the workers. May be called again, and from a `finally`."""
        with self._ahead.changed:
            self._ahead.closing = True
            self._ahead.changed.notify_all()
        self._knock()
        if self._thread.ident is not None:
            self._thread.join()
        self._wake.close()
        self._woken.close()

    def _knock(self) -> None:
        if not self._wake.closed:
            self._wake.send_bytes(b".")

    # -- the thread --------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._workers = [self._start_worker() for _ in range(self.config.workers)]
            while not self._ahead.closing:
                planned = self._plan_a_step()
                self._hand_out()
                self._listen(0 if planned else _TICK / 2)
        except BaseException as error:
            with self._ahead.changed:
                self._ahead.fatal = error
                self._ahead.changed.notify_all()
        finally:
            for worker in self._workers:
                worker.hung = True  # no time to end by itself
                worker.end()
            self._workers = []

    def _start_worker(self) -> WorkerProcess[MicroBatchWork]:
        return WorkerProcess(self._task, self._slots, self._clock)

    def _plan_a_step(self) -> bool:
        """One step more, if there is room: returns whether there may be another. The first is handed out before the second
        is planned."""
        ahead = self._ahead
        if ahead.end is not None or ahead.closing or len(ahead.steps) >= self.config.prefetch_steps:
            return False
        try:
            plan = next(self._plans)
            cut = cut_packs(plan, self._share(plan))
        except BaseException as error:  # StopIteration too: raised at its place in the training's thread
            with ahead.changed:
                ahead.end = error
                ahead.changed.notify_all()
            return False
        step = StepWork(plan, [MicroBatchWork(self._numbers + n, packs, plan.shape) for n, packs in enumerate(cut)])
        self._numbers += len(step.work)
        self._queue.extend(step.work)
        with ahead.changed:
            ahead.steps.append(step)
        return True

    def _hand_out(self) -> None:
        """Waiting micro-batches, oldest first, each to the worker with the fewest in hand."""
        while self._queue:
            worker = min(self._workers, key=lambda worker: len(worker.in_hand))
            if len(worker.in_hand) >= IN_HAND:
                return
            work = self._queue[0]
            if work.slot < 0:
                with self._ahead.changed:
                    if not self._ahead.free:
                        return
                    work.slot = self._ahead.free.popleft()
            self._queue.popleft()
            worker.give(work, MicroBatchJob(work.number, work.slot, work.packs, work.shape), self._clock)

    def _listen(self, timeout: float) -> None:
        """Wait for word from a worker or the training, and do what follows."""
        connections: dict[Any, WorkerProcess[MicroBatchWork]] = {worker.connection: worker for worker in self._workers}
        heard = wait([*connections, self._woken], timeout)
        now = time.monotonic()
        self._clock, self._looked = self._clock + min(now - self._looked, _TICK), now
        for connection in heard:
            if connection is self._woken:
                self._woken.recv_bytes()
                continue
            worker = connections[connection]
            try:
                reply = worker.receive()
            except (EOFError, OSError):
                self._replace(worker)
            else:
                self._note(worker, reply)
        for worker in list(self._workers):
            busy = worker.in_hand or not worker.ready
            allowed = self.config.timeout_s if worker.ready else max(self.config.timeout_s, _START_SECONDS)
            if busy and worker.connection not in heard and self._clock - worker.since > allowed:
                worker.hung = True
                self._replace(worker)

    def _note(self, worker: WorkerProcess[MicroBatchWork], reply: Reply) -> None:
        worker.since = self._clock
        if isinstance(reply, ReadyReply):
            worker.ready, self._failed_starts = True, 0
            return
        if isinstance(reply, FailedReply) and not worker.ready:
            raise _as_error(reply)
        work = worker.in_hand.popleft()
        assert work.number == reply.number, f"micro-batch {reply.number} in place of {work.number}"
        with self._ahead.changed:
            if isinstance(reply, MadeReply):
                work.made = reply
            else:
                work.error = _as_error(reply)
            self._ahead.changed.notify_all()

    # -- faults ------------------------------------------------------------------------------------------------------

    def _replace(self, worker: WorkerProcess[MicroBatchWork]) -> None:
        """End a worker that died or hangs, and start another, which makes first what this one had in hand."""
        how = worker.end()
        work = worker.in_hand[0] if worker.in_hand and worker.ready else None
        what = "while it was idle" if worker.ready else "before it was ready"
        if work is not None:
            what = f"while it made micro-batch {work.number} ({self._documents(work)})"
        if worker.hung:
            self.faults = replace(self.faults, hung=self.faults.hung + 1)
            seconds = self._clock - worker.since
            happened = f"loader worker {worker.pid} hung for {seconds:.0f} s {what}, and was killed"
        else:
            self.faults = replace(self.faults, died=self.faults.died + 1)
            happened = f"loader worker {worker.pid} died by {how} {what}"
        if not worker.ready:
            self._failed_starts += 1
            if self._failed_starts >= MOST_DEATHS:
                raise UserError(
                    f"{happened}, the {_ordinal(self._failed_starts)} in a row. What it printed is above; to make "
                    f"micro-batches in the rank itself, set loader.workers to 0"
                )
        if work is not None:
            work.deaths += 1
            if work.deaths >= MOST_DEATHS:
                worker.in_hand.popleft()
                with self._ahead.changed:
                    work.error = DataError(
                        f"{happened}: the {_ordinal(work.deaths)} worker that this micro-batch has ended. Look at these "
                        f"documents with megatron-vlm inspect, or take them out of the dataset; a machine out of memory "
                        f"looks the same"
                    )
                    self._ahead.changed.notify_all()
        self._say(f"{happened}; another takes its place")
        self._queue.extendleft(reversed(worker.in_hand))
        self._workers[self._workers.index(worker)] = self._start_worker()

    def _documents(self, work: MicroBatchWork) -> str:
        """The documents of a micro-batch, by dataset."""
        prefixes = [source.prefix for source in self.spec.sources]
        return named_documents(documents_by_source(work.packs, prefixes), between=": documents ")


def _ordinal(number: int) -> str:
    return {1: "first", 2: "second", 3: "third"}.get(number, f"{number}th")


def _as_error(reply: FailedReply) -> Exception:
    """The worker's error in this process: a user's error as it was, a defect with its traceback."""
    if not reply.kind:
        return RuntimeError(f"a loader worker failed:\n{reply.text}")
    kind = getattr(errors, reply.kind, UserError)
    return kind(reply.text) if isinstance(kind, type) and issubclass(kind, UserError) else UserError(reply.text)
