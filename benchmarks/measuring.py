"""Timing two or more ways of doing one thing, turn by turn, so that a busy machine slows them alike."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Timing:
    """Seconds of one call, over the runs."""

    median: float
    least: float
    most: float


def parser(description: str | None, runs: int) -> argparse.ArgumentParser:
    """With the options that every benchmark has: `--runs` and `--json`."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--runs", type=int, default=runs, help="timed calls of each way (default: %(default)s)")
    made.add_argument("--json", type=Path, metavar="FILE", help="write settings and timings as json")
    return made


def keep_memory() -> None:
    """Start this process again with an allocator that keeps large blocks, unless it is one already.

    Otherwise every output of some megabytes is given back to the kernel and zeroed page by page on the next call, which
    takes several times as long as writing it and hides what is compared. GPUs have a caching allocator for the same reason.
    """
    kept = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40), "MALLOC_TOP_PAD_": str(1 << 30)}
    if any(os.environ.get(name) != value for name, value in kept.items()):
        os.environ.update(kept)
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def copy_bytes(target: Any, source: Any) -> Callable[[], object]:
    """libc's memcpy of one contiguous torch tensor into another of the same size."""
    import ctypes

    size = source.numel() * source.element_size()
    assert size == target.numel() * target.element_size()
    to, at = ctypes.c_void_p(target.data_ptr()), ctypes.c_void_p(source.data_ptr())

    def call(kept: Any = (target, source)) -> object:  # the tensors must outlive their addresses
        return ctypes.memmove(to, at, size)

    return call


def measure(
    ways: Mapping[str, Callable[[], object]], runs: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, Timing]:
    """Call each way once to warm up, then all of them in turn `runs` times.

    `clock` gives seconds; `time.process_time` counts only those that a CPU spent here.
    """
    for call in ways.values():
        call()
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(runs):
        for name, call in ways.items():
            start = clock()
            call()
            seconds[name].append(clock() - start)
    return {name: Timing(statistics.median(s), min(s), max(s)) for name, s in seconds.items()}


def table(timings: Mapping[str, Timing], base: str) -> str:
    """Milliseconds of each way, and its median over that of `base`."""
    width = max(len(name) for name in timings) + 2
    lines = [f"{'':<{width}}{'median':>10}{'min':>10}{'max':>10}{'ratio':>8}   (ms; ratio to {base})"]
    for name, timing in timings.items():
        numbers = "".join(f"{value * 1e3:>10.2f}" for value in (timing.median, timing.least, timing.most))
        lines.append(f"{name:<{width}}{numbers}{timing.median / timings[base].median:>8.2f}")
    return "\n".join(lines)


def report(args: argparse.Namespace, results: dict[str, Any]) -> None:
    """Write `results` with the settings where `--json` asks for it. Timings become maps of seconds."""
    if args.json is None:
        return
    settings = {name: value for name, value in vars(args).items() if name != "json"}
    text = json.dumps({"settings": settings, "results": results}, indent=2, default=vars)
    args.json.write_text(text + "\n", encoding="utf-8")
