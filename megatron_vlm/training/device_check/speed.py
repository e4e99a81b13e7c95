"""How fast a device copies and multiplies, measured for a second: enough to see a card that is throttled or shared."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from megatron_vlm.planning.hardware import HARDWARE, Hardware

RUNS, WARM_UP = 15, 3


def seconds_of(work: Callable[[], object], device: torch.device, runs: int = RUNS) -> float:
    """Of one call on the device, the median of `runs` after a few to warm up."""
    for _ in range(WARM_UP):
        work()
    found = []
    for _ in range(runs):
        if device.type == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            work()
            end.record()
            end.synchronize()
            found.append(begin.elapsed_time(end) / 1e3)
        else:
            began = time.perf_counter()
            work()
            found.append(time.perf_counter() - began)
    return statistics.median(found)


def copy_rate(device: torch.device, size: int) -> float:
    """Bytes a second that a copy of `size` bytes within the device reads and writes together, as data sheets count."""
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / seconds_of(lambda: target.copy_(source), device)


def matrix_rate(device: torch.device, side: int, dtype: torch.dtype) -> float:
    """Operations a second of a product of two `side` x `side` matrices."""
    one, other = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(one)
    return 2 * side**3 / seconds_of(lambda: torch.mm(one, other, out=out), device)


def data_sheet(name: str) -> Hardware | None:
    """Of a device by its name, such as "NVIDIA H100 80GB HBM3"; None for one that is not described."""
    words = name.lower().replace("-", " ").split()
    return next((hardware for kind, hardware in HARDWARE.items() if kind in words), None)


def check_copy(device: torch.device, size: int) -> str:
    rate = copy_rate(device, size)
    sheet = data_sheet(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    share = f", {rate / sheet.memory_bandwidth:.0%} of the data sheet's {sheet.memory_bandwidth / 1e12:.2f}" if sheet else ""
    return f"{rate / 1e12:.3f} TB/s, copying {size / 1e6:.0f} MB{share}"


def check_matrices(device: torch.device, side: int, dtype: torch.dtype) -> str:
    rate, name = matrix_rate(device, side, dtype), str(dtype).removeprefix("torch.")
    sheet = data_sheet(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    peak = sheet.peak.get({"bfloat16": "bf16", "float32": "fp32"}.get(name, name)) if sheet else None
    share = f", {rate / peak:.0%} of the data sheet's {peak / 1e12:.0f}" if peak else ""
    return f"{rate / 1e12:.2f} TFLOP/s, {name}, {side} x {side}{share}"
