"""A rank's end of one worker: the process, the connection to it, and the micro-batches that it has in hand."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import deque
from multiprocessing import Pipe
from pathlib import Path
from typing import Generic, TypeVar

import megatron_vlm
from megatron_vlm.data.loader.messages import MicroBatchJob, Reply, WorkerTask, receive_reply
from megatron_vlm.data.loader.slots import SharedSlots
from megatron_vlm.data.loader.worker import LEFT_TO_THE_RANK

#: micro-batches in a worker's hand: the one that it makes and the next, so that it never waits for the rank to look
IN_HAND = 2
Work = TypeVar("Work")


class WorkerProcess(Generic[Work]):
    """A started worker. `in_hand` is what it was given and has not answered, oldest first; `since` is when it began with the
    oldest, or when it was started, by the clock of the caller."""

    def __init__(self, task: WorkerTask, slots: SharedSlots, now: float) -> None:
        self.connection, theirs = Pipe()
        self._slots = slots
        self.in_hand: deque[Work] = deque()
        self.since, self.ready, self.hung = now, False, False
        packages = str(Path(megatron_vlm.__file__).parents[1])
        # -P: a folder that the run was started from shadows no module
        command = [sys.executable, "-P", "-m", "megatron_vlm.data.loader.worker"]
        # A signal to the group must not end a worker before it can ignore it: it starts with them held back.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, LEFT_TO_THE_RANK)
        try:
            self.process = subprocess.Popen(
                [*command, str(theirs.fileno()), str(slots.descriptor), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), slots.descriptor),
                env={**os.environ, "PYTHONPATH": os.pathsep.join([packages, os.environ.get("PYTHONPATH", "")]).rstrip(":")},
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            theirs.close()
        self._send_task(task)

    def _send_task(self, task: WorkerTask) -> None:
        try:
            self.connection.send_bytes(task.to_bytes())
        except OSError:  # it died at once; whoever reads from it finds that
            return

    @property
    def pid(self) -> int:
        return self.process.pid

    def give(self, work: Work, job: MicroBatchJob, now: float) -> None:
        if not self.in_hand:
            self.since = now
        self.in_hand.append(work)
        try:
            job.send(self.connection, self._slots)
        except OSError:
            return

    def receive(self) -> Reply:
        """Raises EOFError or OSError where the worker is gone."""
        return receive_reply(self.connection)

    def end(self) -> str:
        """Kill the process if it still is there, and say how it ended. After this nothing of it writes into a slot."""
        if self.process.poll() is None:
            try:
                # one that closed its connection is about to end by itself, and its own end says more
                self.process.wait(0 if self.hung else 0.5)
            except subprocess.TimeoutExpired:
                self.process.kill()
        code = self.process.wait()
        self.connection.close()
        return f"signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"exit code {code}"
