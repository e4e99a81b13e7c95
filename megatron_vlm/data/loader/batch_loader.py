"""The steps of a run with their micro-batches, made ready ahead."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType

import torch

from megatron_vlm.config.loader import LoaderConfig
from megatron_vlm.config.steps import StepShape
from megatron_vlm.data.loader.dispatcher import (
    Dispatcher,
    LoaderFaults,
    MicroBatchWork,
    StepWork,
    cut_packs,
    say_to_stderr,
)
from megatron_vlm.data.loader.messages import MakerSpec
from megatron_vlm.data.loader.opening import open_maker
from megatron_vlm.data.loader.slots import SharedSlots, SlotLayout, slots_needed
from megatron_vlm.data.micro_batch import MicroBatch, MicroBatchMaker, as_tensors
from megatron_vlm.data.micro_batch_arrays import MicroBatchArrays
from megatron_vlm.data.step_plan import StepPlan

Share = Callable[[StepPlan], list[int]]


@dataclass(frozen=True, slots=True)
class LoadedStep:
    """A step that can be trained on.

    Attributes:
        plan: of the whole global batch.
        batches: this rank's micro-batches. Until the next step is asked for: then their memory is written again.
        waited: seconds that the caller waited for it.
        faults: of workers, from the start.
    """

    plan: StepPlan
    batches: list[MicroBatch]
    waited: float
    faults: LoaderFaults


class BatchLoader:
    """Iterates over the steps of `plans` with this rank's micro-batches, in order, whatever the number of workers.

    `plans` and `share` are called ahead of the training, in a thread of this class; what they raise is raised in place of
    their step. Closing ends the workers; so does the end of this process, however it ends.

    Args:
        spec: sources and decoder.
        plans: the steps from the next one on.
        share: the packs of a step that this rank computes, by number.
        config: workers, steps ahead, time.
        shapes: of all steps that `plans` may give; they size the shared memory.
        ranks: data-parallel size, which every global batch divides by.
        pin_memory: tell the CUDA driver of the shared memory, so that copies from it run beside everything else. Written
            by the driver's documentation, and run by nobody yet.
        say: called, in a thread, with a line for every worker that died or hung.

    Raises:
        UserError: the memory is not there.
    """

    def __init__(
        self,
        spec: MakerSpec,
        plans: Iterator[StepPlan],
        share: Share,
        config: LoaderConfig,
        shapes: Sequence[StepShape],
        ranks: int = 1,
        pin_memory: bool = False,
        say: Callable[[str], None] = say_to_stderr,
    ) -> None:
        self.config, self._plans, self._share = config, plans, share
        self._dispatcher: Dispatcher | None = None
        self._in_training: StepWork | None = None
        self._pinned: int | None = None
        if config.workers:
            self._slots = SharedSlots(*slots_needed(shapes, ranks, config.prefetch_steps + 1))
            if pin_memory:
                self._pinned = _pin(self._slots)
            self._dispatcher = Dispatcher(spec, self._slots, plans, share, config, say)
        else:
            self._make = MicroBatchMaker(open_maker(spec), pin_memory)

    def __iter__(self) -> Iterator[LoadedStep]:
        return self

    def __next__(self) -> LoadedStep:
        """The next step; the memory of the one before is given back.

        Raises:
            StopIteration: `plans` are at their end.
            DataError: what a worker met in the data, or a micro-batch during which worker after worker died.
        """
        begun = time.perf_counter()
        if self._dispatcher is None:
            plan = next(self._plans)
            batches = [self._make(packs, plan.shape) for packs in cut_packs(plan, self._share(plan))]
            return LoadedStep(plan, batches, time.perf_counter() - begun, LoaderFaults())
        if self._in_training is not None:
            self._dispatcher.release(self._in_training)
            self._in_training = None
        step = self._dispatcher.take()
        waited = time.perf_counter() - begun
        self._in_training = step
        return LoadedStep(step.plan, [self._wrap(work) for work in step.work], waited, self._dispatcher.faults)

    def _wrap(self, work: MicroBatchWork) -> MicroBatch:
        """A slot as tensors, without a copy."""
        layout, slot, reply = SlotLayout(len(work.packs), work.shape), self._slots.slot(work.slot), work.made
        assert reply is not None
        cu_seqlens = layout.cu_seqlens(slot, reply.segments)
        batch = layout.buffers(slot).batch(cu_seqlens, reply.max_seqlen, reply.image_rows)
        pictures, sizes, pixels, features = reply.pictures, None, None, None
        if work.shape.picture.native:
            sizes = tuple((height, width) for height, width in layout.sizes(slot, pictures).tolist())
        if reply.pixels and work.shape.features:
            features = layout.features(slot, reply.image_rows)
        elif reply.pixels and sizes is not None:
            pixels = layout.pixel_bytes(slot, 3 * sum(height * width for height, width in sizes))
        elif reply.pixels:
            pixels = layout.pixels(slot, pictures)
        return as_tensors(MicroBatchArrays(batch, pixels, pictures, reply.broken, sizes, features))

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers that there are."""
        return self._dispatcher.pids if self._dispatcher is not None else []

    def close(self) -> None:
        """End the workers. Micro-batches that were given out stay readable."""
        if self._dispatcher is not None:
            self._dispatcher.close()
            self._slots.close()
        if self._pinned is not None:
            torch.cuda.cudart().cudaHostUnregister(self._pinned)
            self._pinned = None

    def __enter__(self) -> BatchLoader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _pin(slots: SharedSlots) -> int | None:
    """Returns the address that was registered, or None where the driver refuses: copies are then slower, nothing else."""
    address, size = slots.address()
    return address if int(torch.cuda.cudart().cudaHostRegister(address, size, 0)) == 0 else None
