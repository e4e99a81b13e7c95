"""All records of a file in one go, for what has no workers."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from megatron_vlm.data.quarantine import Rejection
from megatron_vlm.data.records import Record, Source
from megatron_vlm.data.sources.opening import InputFile


def read_file(source: Source, file: InputFile) -> Iterator[Record | Rejection]:
    """The records of all units, in order. Raises DataError as `source.units` does."""
    for unit in source.units(file.url, file.size, sys.maxsize):
        yield from source.read(unit)
