"""A worker: a process that makes micro-batches into the slots of its rank, one after another, until the rank is gone.

Started as `python -m megatron_vlm.data.loader.worker CONNECTION SLOTS RANK`: two descriptors that it inherits and the
rank's process id.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import traceback
from multiprocessing.connection import Connection

import numpy as np

from megatron_vlm.data.loader.messages import (
    FailedReply,
    MadeReply,
    MicroBatchJob,
    ReadyReply,
    Reply,
    WorkerTask,
    send_reply,
)
from megatron_vlm.data.loader.opening import open_maker
from megatron_vlm.data.loader.slots import SharedSlots, SlotLayout
from megatron_vlm.data.micro_batch_arrays import ArrayMaker
from megatron_vlm.errors import UserError

#: sent to a whole process group; whether a run goes on after them is for the rank to decide
LEFT_TO_THE_RANK = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_PR_SET_PDEATHSIG = 1
#: number of a failure that belongs to no micro-batch
NO_JOB = -1
_TRACEBACK = 8000  # characters of it that are sent


def end_with(rank: int) -> None:
    """Have this process killed when the rank dies, even where it is stopped or in native code.

    Only Linux has this. Elsewhere a worker ends when it next looks for a job and finds the connection closed.
    """
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != rank:  # it died before
        os._exit(1)


def make(maker: ArrayMaker, slots: SharedSlots, job: MicroBatchJob) -> Reply:
    """Write a micro-batch into its slot; errors become replies."""
    try:
        layout, slot = SlotLayout(len(job.packs), job.shape), slots.slot(job.slot)
        made = maker(job.packs, job.shape, layout.memory(slot))
        batch = made.batch
        layout.cu_seqlens(slot, len(batch.cu_seqlens))[:] = batch.cu_seqlens
        if made.sizes is not None:
            layout.sizes(slot, made.pictures)[:] = np.array(made.sizes, np.int32).reshape(-1, 2)
    except Exception as error:
        return failure(job.number, error)
    return MadeReply(
        job.number,
        len(batch.cu_seqlens),
        batch.max_seqlen,
        batch.image_rows,
        made.pictures,
        made.pixels is not None or made.features is not None,
        made.broken,
    )


def failure(number: int, error: Exception) -> FailedReply:
    if isinstance(error, UserError):
        return FailedReply(number, type(error).__name__, str(error))
    return FailedReply(number, "", "".join(traceback.format_exception(error))[-_TRACEBACK:])


def serve(connection: Connection, descriptor: int) -> None:
    task = WorkerTask.from_bytes(connection.recv_bytes())
    try:
        maker = open_maker(task.maker)
        slots = SharedSlots(task.slots, task.slot_bytes, descriptor)
    except Exception as error:
        send_reply(connection, failure(NO_JOB, error))
        return
    send_reply(connection, ReadyReply())
    while True:
        send_reply(connection, make(maker, slots, MicroBatchJob.receive(connection, slots)))


def main() -> None:
    for number in LEFT_TO_THE_RANK:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, LEFT_TO_THE_RANK)  # held back until now, see WorkerProcess
    connection, descriptor, rank = (int(argument) for argument in sys.argv[1:])
    end_with(rank)
    with contextlib.suppress(EOFError, ConnectionError):  # the rank is gone
        serve(Connection(connection), descriptor)


if __name__ == "__main__":
    main()
