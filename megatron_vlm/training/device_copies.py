"""A step's micro-batches on their way to the device, beside what it computes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from megatron_vlm.data.micro_batch import MicroBatch


class DeviceCopies:
    """Begins the copies of all micro-batches of a step at once, in the order in which they are computed, on a stream of
    their own. Each is waited for where it is first used (`MicroBatch.arrive`), so that only the first is in nobody's shadow:
    the others arrive while those before them are computed. On the host there is nothing to copy.

    Written by CUDA's documentation; run by nobody yet.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def begin(self, batches: Sequence[MicroBatch]) -> list[MicroBatch]:
        """The same micro-batches on the device. Memory that they come from must stay as it is until they have been used."""
        return [self._begin(batch) for batch in batches]

    def _begin(self, batch: MicroBatch) -> MicroBatch:
        if self._stream is None:
            return batch
        with torch.cuda.stream(self._stream):
            there = batch.to(self.device)
            copied = torch.cuda.Event()
            copied.record(self._stream)
        return dataclasses.replace(there, arrival=partial(_wait, copied, there.tensors()))


def _wait(copied: torch.cuda.Event, tensors: Sequence[Tensor]) -> None:
    """The device's current stream goes on when these are copied; their memory is not given away before it is done."""
    stream = torch.cuda.current_stream()
    stream.wait_event(copied)
    for tensor in tensors:
        tensor.record_stream(stream)
