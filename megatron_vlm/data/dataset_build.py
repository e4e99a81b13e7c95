"""From source files to a finished dataset: read, prepare on threads, write in the order of the sources.

The main thread reads and writes; threads prepare batches in between (decoding pictures and encoding text
release Python's lock). Batches come back in order, so the number of threads never changes a byte of the
result.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from megatron_vlm.data.indexed_writer import IndexedWriter
from megatron_vlm.data.input_files import file_sha256
from megatron_vlm.data.quarantine import Quarantine, Rejection
from megatron_vlm.errors import DataError

BATCH_RECORDS = 256
BATCH_BYTES = 8 << 20


class SourceRecord(Protocol):
    """What the building needs to know of a record, whatever it is of."""

    @property
    def file(self) -> Path: ...

    @property
    def key(self) -> str: ...

    @property
    def position(self) -> int: ...

    @property
    def size(self) -> int: ...


Record = TypeVar("Record", bound=SourceRecord)


@dataclass(frozen=True, slots=True)
class Document:
    """What gets written for a record: a picture, if there is one, then the token ids."""

    image: bytes | None
    ids: list[int]


@dataclass(frozen=True)
class Recipe(Generic[Record]):
    """How one kind of source becomes documents.

    Attributes:
        read: yields the records of a file, in order.
        prepare: gives for each record of a batch its documents, or why there are none. Runs on several
            threads at once.
    """

    read: Callable[[Path], Iterator[Record | Rejection]]
    prepare: Callable[[Sequence[Record]], list[list[Document] | Rejection]]


@dataclass
class BuildCounts:
    """What went in and what came out. `sources` has a row for each file, in order, as NAME.json shows it."""

    sources: list[dict[str, Any]] = field(default_factory=list)
    documents: int = 0
    tokens: int = 0
    images: int = 0


def build_documents(
    recipe: Recipe[Record],
    files: Sequence[Path],
    writer: IndexedWriter,
    quarantine: Quarantine,
    *,
    workers: int = 1,
    show_progress: bool = False,
) -> BuildCounts:
    """Write the documents of all `files`; neither `writer` nor `quarantine` is finalized.

    Raises DataError when nothing was written at all, and what `quarantine` raises when it is strict.
    """
    counts = BuildCounts()
    rows = {file: _source_row(file) for file in files}
    pool = ThreadPoolExecutor(workers, thread_name_prefix="preprocess")
    try:
        hashes: dict[Path, Future[str]] = {}

        def after(file: Path) -> None:
            hashes[file] = pool.submit(file_sha256, file)  # while its bytes are still in memory

        with _Progress(sum(row["bytes"] for row in rows.values()), show_progress) as progress:
            for batch in _in_order(pool, recipe, files, after, window=workers + 2):
                for item, outcome in batch:
                    row = rows[item.file]
                    row["records"] += 1
                    if isinstance(outcome, Rejection):
                        quarantine.add(outcome)
                        row["quarantined"] += 1
                        continue
                    row["documents"] += len(outcome)
                    for document in outcome:
                        _write(document, writer, counts)
                if batch:
                    progress.show(batch[-1][0].file, batch[-1][0].position, counts)
        for file, row in rows.items():
            row["sha256"] = hashes[file].result()
    finally:
        pool.shutdown(cancel_futures=True)
    if not counts.documents:
        raise DataError(_nothing_left(files, quarantine))
    counts.sources = list(rows.values())
    return counts


Outcome = list[tuple[SourceRecord | Rejection, list[Document] | Rejection]]


def _in_order(
    pool: ThreadPoolExecutor,
    recipe: Recipe[Record],
    files: Sequence[Path],
    after: Callable[[Path], None],
    window: int,
) -> Iterator[Outcome]:
    """Prepared batches in the order of the sources, with at most `window` in memory."""
    pending: deque[Future[Outcome]] = deque()
    for batch in _batches(recipe, files, after):
        pending.append(pool.submit(_prepare, recipe, batch))
        if len(pending) >= window:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def _batches(
    recipe: Recipe[Record], files: Sequence[Path], after: Callable[[Path], None]
) -> Iterator[list[Record | Rejection]]:
    """Records in batches that may span files; `after` is called with each file that has been read."""
    batch: list[Record | Rejection] = []
    size = 0
    for file in files:
        for item in recipe.read(file):
            batch.append(item)
            size += 0 if isinstance(item, Rejection) else item.size
            if len(batch) >= BATCH_RECORDS or size >= BATCH_BYTES:
                yield batch
                batch, size = [], 0
        after(file)
    if batch:
        yield batch


def _prepare(recipe: Recipe[Record], batch: list[Record | Rejection]) -> Outcome:
    prepared = iter(recipe.prepare([item for item in batch if not isinstance(item, Rejection)]))
    return [(item, item if isinstance(item, Rejection) else next(prepared)) for item in batch]


def _write(document: Document, writer: IndexedWriter, counts: BuildCounts) -> None:
    if document.image is not None:
        writer.add_image(document.image)
        counts.images += 1
    writer.add_text(document.ids)
    writer.end_document()
    counts.documents += 1
    counts.tokens += len(document.ids)


def _source_row(file: Path) -> dict[str, Any]:
    return {
        "path": str(file),
        "bytes": file.stat().st_size,
        "sha256": "",
        "records": 0,
        "documents": 0,
        "quarantined": 0,
    }


def _nothing_left(files: Sequence[Path], quarantine: Quarantine) -> str:
    if quarantine.first is None:
        return f"{files[0]} and {len(files) - 1} other input files hold no records; check what they are"
    reasons = ", ".join(f"{count} {reason}" for reason, count in quarantine.by_reason().items())
    first = quarantine.first
    return (
        f"no record can be used ({reasons}), so nothing was written. The first is {first.file}, "
        f"record {first.key!r}: {first.detail}. Check the kind of input and the names of its fields"
    )


class _Progress:
    """A bar over the bytes of the sources, for MB/s and the time left, with documents and tokens a second."""

    def __init__(self, total: int, show: bool) -> None:
        from tqdm import tqdm

        self._bar = tqdm(total=total, unit="B", unit_scale=True, disable=not show, dynamic_ncols=True)
        self._start = time.monotonic()
        self._file: Path | None = None
        self._before = 0  # bytes of the files that are done

    def show(self, file: Path, position: int, counts: BuildCounts) -> None:
        if self._bar.disable:
            return
        if file != self._file:
            self._before += self._file.stat().st_size if self._file else 0
            self._file = file
        seconds = max(time.monotonic() - self._start, 1e-3)
        self._bar.set_postfix_str(
            f"{counts.documents / seconds:,.0f} documents/s, {counts.tokens / seconds:,.0f} tokens/s",
            refresh=False,
        )
        self._bar.update(max(self._before + position - self._bar.n, 0))

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
