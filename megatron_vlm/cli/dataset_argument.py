"""What the commands on finished datasets have in common: names of datasets, and a bar while bytes go by."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


def dataset_prefix(given: Path) -> Path:
    """The prefix of a dataset that may be named by one of its two files, as a shell completes it."""
    return given.with_suffix("") if given.suffix in (".bin", ".idx") else given


@contextmanager
def byte_bar(total: int, what: str) -> Iterator[Callable[[int], object]]:
    """A bar on a terminal's standard error, with bytes a second and the time left; gives what to call with bytes done."""
    from tqdm import tqdm

    options = {"unit": "B", "unit_scale": True, "dynamic_ncols": True, "disable": not sys.stderr.isatty()}
    with tqdm(total=total, desc=what, **options) as bar:
        yield bar.update
