"""The end of a process whose run cannot go on: who was lost, where this rank waited, its stack."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import time
from typing import NoReturn

import psutil

from megatron_vlm.training.faults.exit_codes import EXIT_RANK_LOST
from megatron_vlm.training.faults.peers import Accused, Verdict
from megatron_vlm.training.faults.pulse import Pulse

#: seconds for an accused process to end by itself, and then for the dump of its stack
_PATIENCE = 1.0


def report(verdict: Verdict, rank: int, pulse: Pulse) -> str:
    """What this rank says: the verdict, its own place, the collective that it waits in, and its main thread's stack."""
    mark, collective = pulse.mark, pulse.collective()
    waiting = f", waiting in {collective}" if collective else ""
    return (
        f"megatron-vlm: {verdict.text}\n"
        f"megatron-vlm: rank {rank} (pid {os.getpid()}) ends with exit code {EXIT_RANK_LOST}; it is at step {mark.step} in "
        f"phase {mark.phase!r} for {time.monotonic() - mark.since:.1f} s{waiting}. Its stack, innermost last:\n"
        f"{pulse.stack()}"
    )


def end_process(accused: Accused) -> None:
    """End a process of this host that stands still, after it was asked for its stack.

    SIGABRT makes faulthandler write the stack of a stopped process too, as soon as SIGCONT wakes it. Without this a
    launcher would wait half a minute for it: a stopped process does not answer SIGTERM.
    """
    try:
        process = psutil.Process(accused.pid)
        if abs(process.create_time() - accused.born) > 1e-3:
            return
        if process.status() != psutil.STATUS_STOPPED and _gone(process):
            return
        _abort_main_thread(process)
        process.send_signal(signal.SIGCONT)
        if not _gone(process):
            process.kill()
    except psutil.Error:  # it has ended, or is not ours
        return


def _abort_main_thread(process: psutil.Process) -> None:
    """SIGABRT to its main thread where the C library can: a stopped one then answers from where it stands.

    To the process as a whole, any thread may take it, and the main thread be somewhere else before the stacks are written.
    """
    tgkill = getattr(ctypes.CDLL(None), "tgkill", None)
    if tgkill is None or tgkill(process.pid, process.pid, signal.SIGABRT) != 0:
        process.send_signal(signal.SIGABRT)


def _gone(process: psutil.Process) -> bool:
    """Waits for it; a child of somebody else that nobody has waited for yet is gone too."""
    until = time.monotonic() + _PATIENCE
    while time.monotonic() < until:
        if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.02)
    return False


def end(verdict: Verdict, rank: int, pulse: Pulse) -> NoReturn:
    """Say it and end this process at once: its main thread may wait in a collective that never ends."""
    try:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        # one write: lines of ranks that share a terminal do not mix
        os.write(2, report(verdict, rank, pulse).encode())
        for accused in verdict.accused:
            if accused.by == rank:
                end_process(accused)
    finally:  # whatever could not be said
        os._exit(EXIT_RANK_LOST)
