"""Faults that CUDA operators meet in their data: a flag on the device that is read when the host waits for it anyway."""

from __future__ import annotations

import torch
from torch import Tensor

from megatron_vlm.ops.kernels import describe_faults

_FLAGS: dict[torch.device, Tensor] = {}


def fault_flag(device: torch.device) -> Tensor:
    """int32 `[1]` on `device`, the same one at every call, into which operators lay the bits of what they met."""
    if device not in _FLAGS:
        _FLAGS[device] = torch.zeros(1, dtype=torch.int32, device=device)
    return _FLAGS[device]


def raise_faults(device: torch.device) -> None:
    """Raise what operators have met on `device` since the last call; waits for what runs on it.

    Raises:
        IndexError: saying which kinds of index were out of range. What was computed from them is wrong, though nothing
            outside the buffers was touched.
    """
    flag = _FLAGS.get(device)
    if flag is None:
        return
    bits = int(flag)
    flag.zero_()
    if bits:
        raise IndexError(f"on {device}: {describe_faults(bits)}")
