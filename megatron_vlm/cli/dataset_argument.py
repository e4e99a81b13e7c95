"""What the commands on finished datasets have in common: names of datasets, and a bar while bytes go by."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from megatron_vlm.errors import ConfigError

Advance = Callable[[int], object]


def dataset_prefix(given: Path) -> Path:
    """The prefix of a dataset that may be named by one of its two files, as a shell completes it."""
    return given.with_suffix("") if given.suffix in (".bin", ".idx") else given


def checked_workers(workers: int | None) -> int | None:
    """Raises ConfigError for a number of threads that can do no work."""
    if workers is not None and workers < 1:
        raise ConfigError(f"--workers is {workers}; at least one thread has to do the work")
    return workers


@contextmanager
def copy_bar(what: str) -> Iterator[tuple[Advance, Advance]]:
    """A bar on a terminal's standard error, with bytes a second and the time left.

    Gives what to call with bytes that are done, from any thread, and what to call with how many there will be.
    """
    from tqdm import tqdm

    lock = threading.Lock()
    options: dict[str, Any] = {"unit": "B", "unit_scale": True, "dynamic_ncols": True, "disable": not sys.stderr.isatty()}
    with tqdm(total=0, desc=what, **options) as bar:

        def advance(count: int) -> None:
            with lock:
                bar.update(count)

        yield advance, bar.reset


@contextmanager
def byte_bar(total: int, what: str) -> Iterator[Advance]:
    """The same of a number of bytes that is known."""
    with copy_bar(what) as (advance, set_total):
        set_total(total)
        yield advance


def describe_copy(output: Path, known: dict[str, Any], origin: str, seconds: float) -> str:
    """One line on a dataset that was copied from others; `known` is its metadata."""
    counts = f"{known['documents']:,} documents {origin}, {known['images']:,} images, {known['tokens']:,} tokens"
    return f"Wrote {output}.bin and .idx: {counts}, in {seconds:,.1f} s."
