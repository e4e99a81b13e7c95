"""One process's work: a unit of a source into a part."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megatron_vlm.data.building.options import BuildOptions
from megatron_vlm.data.building.part import PartCounts, PartWriter
from megatron_vlm.data.building.prepared import Preparer
from megatron_vlm.data.quarantine import Rejection
from megatron_vlm.data.records import Record, Source, Text, Unit
from megatron_vlm.data.tokenizer import Tokenizer
from megatron_vlm.errors import DataError

#: a batch ends with whichever comes first; what a worker holds of a unit is one batch, before and after it is prepared
BATCH_RECORDS = 512
BATCH_BYTES = 8 << 20


@dataclass(frozen=True)
class WorkerJob:
    """What every process of a run needs to know; picklable."""

    folder: Path
    tokenizer: Tokenizer
    options: BuildOptions
    dtype: str
    parallel: bool  # whether a process may encode on several threads
    only: bool = False  # whether there is one unit, whose part is the dataset


class Worker:
    """Does units. `progress` is a shared array of bytes read, documents and tokens, or anything with
    `get_lock()` and items."""

    def __init__(self, job: WorkerJob, progress: Any) -> None:
        self.job, self._progress = job, progress
        self._preparer = Preparer(job.tokenizer, job.options, np.dtype(job.dtype))

    def do(self, number: int, source: Source, unit: Unit) -> PartCounts:
        """Make the part of a unit.

        Raises DataError for the first record that cannot be used where that is asked for.
        """
        part = PartWriter(self.job.folder, number, self.job.only)
        try:
            read = 0
            for records in batches(source.read(unit)):
                batch = self._preparer.prepare(unit.url, records, self.job.parallel)
                if batch.rejections and self.job.options.strict:
                    raise DataError(_stopped_by(batch.rejections[0]))
                part.add(batch, len(records))
                part.add_absent(place for record in records for place in record.absent)
                now = min(records[-1].bytes_read, unit.size)
                self._advance(now - read, len(batch.sequences), batch.tokens)
                read = max(read, now)
            self._advance(unit.size - read, 0, 0)
            return part.commit()
        finally:
            part.discard()

    def _advance(self, size: int, documents: int, tokens: int) -> None:
        with self._progress.get_lock():
            self._progress[0] += size
            self._progress[1] += documents
            self._progress[2] += tokens


def batches(records: Iterator[Record | Rejection]) -> Iterator[list[Record | Rejection]]:
    batch: list[Record | Rejection] = []
    size = 0
    for record in records:
        batch.append(record)
        size += 0 if isinstance(record, Rejection) else _size(record)
        if len(batch) >= BATCH_RECORDS or size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _size(record: Record) -> int:
    size = 0
    for part in record.documents[0]:
        size += len(part.text) if isinstance(part, Text) else len(part.encoded)
    return size


def _stopped_by(rejection: Rejection) -> str:
    record = f"record {rejection.number + 1}" + (f" ({rejection.key})" if rejection.key else "")
    return (
        f"{rejection.file}, {record}: {rejection.reason}: {rejection.detail}. Mend or remove the record, or run without "
        f"--strict to set such records aside"
    )


# In a process of a pool, where a function can only be named:

_worker: Worker | None = None


def set_threads(threads: int) -> None:
    """Of the tokenizers' own libraries, which read this once, when they first encode."""
    os.environ.setdefault("RAYON_NUM_THREADS", str(threads))
    if threads == 1:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def begin(job: WorkerJob, progress: Any, threads: int) -> None:
    """Set a process up."""
    import multiprocessing

    global _worker
    set_threads(threads)
    parent = multiprocessing.parent_process()
    if parent is not None:
        # A run that is killed cannot end its workers: they watch it. (A parent_process() is known to forked ones too.)
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    _worker = Worker(job, progress)


def _end_with(parent: Any) -> None:
    parent.join()
    os._exit(1)


def do(number: int, source: Source, unit: Unit) -> tuple[int, PartCounts]:
    assert _worker is not None
    return number, _worker.do(number, source, unit)
