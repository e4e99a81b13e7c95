"""Sources into datasets: plan units, have workers do those that are not done, put the parts together."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import astuple, dataclass, field, replace
from pathlib import Path
from typing import IO, Any, TextIO

import numpy as np

from megatron_vlm import __version__
from megatron_vlm.data import atomic_file
from megatron_vlm.data.building import worker
from megatron_vlm.data.building.assembly import Assembly, Output, merged_filters, output_prefixes
from megatron_vlm.data.building.options import BuildOptions
from megatron_vlm.data.building.part import Part
from megatron_vlm.data.building.progress import Progress
from megatron_vlm.data.indexed_format import dataset_paths
from megatron_vlm.data.indexed_writer import refuse_foreign_metadata
from megatron_vlm.data.quarantine import Reason
from megatron_vlm.data.records import Source, Unit
from megatron_vlm.data.sources.opening import InputFile, file_sha256, is_remote
from megatron_vlm.data.sources.suffixes import is_tar
from megatron_vlm.data.tokenizer import Tokenizer
from megatron_vlm.errors import ConfigError, DataError

UNIT_BYTES = 32 << 20  # of a file that can be cut; part of a job's identity, as its parts are
FORMAT = 2  # of the parts: another number makes old ones useless
POLL_SECONDS = 0.2
LOCK_SECONDS = 2.0  # in which the workers of a run that was killed have ended
FULL = (errno.ENOSPC, errno.EDQUOT)
PROCESS_BYTES = 8 << 20  # of sources that make up for the second in which a process starts


@dataclass(frozen=True)
class SourceFile:
    """A file and how it is read. `name` is what the metadata calls it, where that is not its url."""

    file: InputFile
    source: Source
    name: str = ""


@dataclass(frozen=True)
class BuildJob:
    """All that decides the bytes of the result.

    Attributes:
        kind: "text", "image_text", ... as the metadata says.
        settings: the reader's, for the metadata and the job's identity; JSON.
        multimodal: whether the datasets hold pictures.
        stores: files besides the sources that pictures are read from.
    """

    kind: str
    files: Sequence[SourceFile]
    prefix: Path
    tokenizer: Tokenizer
    dtype: np.dtype[Any]
    multimodal: bool
    options: BuildOptions
    settings: dict[str, Any]
    stores: Sequence[InputFile] = ()

    @property
    def fingerprint(self) -> str:
        """Parts of a job with this fingerprint can be used again."""
        known = {
            "format": FORMAT,
            "version": __version__,
            "unit_bytes": UNIT_BYTES,
            "kind": self.kind,
            "files": [astuple(f.file) for f in self.files],
            "stores": [astuple(store) for store in self.stores],
            "tokenizer": self.tokenizer.fingerprint,
            "dtype": self.dtype.str,
            "settings": self.settings,
            "options": repr(replace(self.options, strict=False)),
        }
        return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()


@dataclass
class BuildResult:
    """What was made. `records` and `lost` are of the sources; `again` is how many units an earlier run had done."""

    outputs: list[Output]
    metadata: dict[str, Any]
    records: int
    lost: int
    units: int
    again: int
    seconds: float
    source_bytes: int
    sources: list[dict[str, Any]] = field(default_factory=list)


def parts_folder(prefix: Path) -> Path:
    return prefix.with_name(prefix.name + ".parts")


def build(job: BuildJob, *, workers: int, show_progress: bool = False) -> BuildResult:
    """Run a job, or go on with what an interrupted run of the same job has left.

    Finished units lie in PREFIX.parts until the datasets are whole; another job's parts there are removed.

    Raises:
        ConfigError: fewer than one worker.
        DataError: another run is at the same output; no record can be used; a worker was killed; the disk is full; and with
            `strict`, the first record that cannot be used.
    """
    if workers < 1:
        raise ConfigError(f"workers is {workers}; at least one process has to do the work")
    start = time.monotonic()
    _refuse_outputs(job)
    folder = parts_folder(job.prefix)
    with full_disk_is_named(job.prefix), _only_run(folder):
        _begin_or_resume(folder, job.fingerprint)
        units = [(f, unit) for f in job.files for unit in f.source.units(f.file.url, f.file.size, UNIT_BYTES)]
        with Progress(sum(f.file.size for f in job.files), show_progress) as progress:
            again, hashes = _do_units(job, folder, units, workers, progress)
            parts = [part for n in range(len(units)) if (part := Part.find(folder, n)) is not None]
            result = _put_together(job, units, parts, hashes, progress)
        _remove(folder)
    result.again, result.seconds = again, time.monotonic() - start
    return result


def _do_units(
    job: BuildJob, folder: Path, units: Sequence[tuple[SourceFile, Unit]], workers: int, progress: Progress
) -> tuple[int, dict[str, str]]:
    """Have every unit done; how many were already, and the sha256 of each file by url."""
    todo = []
    for number, (file, unit) in enumerate(units):
        part = Part.find(folder, number, verify=True)
        if part is None or part.lacks_what_is_there():
            todo.append((number, file.source, unit))
        else:
            progress.already(unit.size, part.counts.documents, part.counts.tokens)
    urls = list(dict.fromkeys(f.file.url for f in job.files))
    worthwhile = -(-sum(unit.size for _, _, unit in todo) // PROCESS_BYTES)
    processes = max(1, min(workers, len(todo), worthwhile))
    threads = max(1, workers // processes)
    about = worker.WorkerJob(folder, job.tokenizer, job.options, job.dtype.str, threads > 1, len(units) == 1)
    if processes == 1:
        worker.set_threads(threads)
        own = worker.Worker(about, progress.shared)
        with progress.watching(), ThreadPoolExecutor(1, thread_name_prefix="hash") as beside:
            hashing = {url: beside.submit(file_sha256, url) for url in urls}
            try:
                for unit_job in todo:
                    own.do(*unit_job)
            except BaseException:
                beside.shutdown(wait=False, cancel_futures=True)
                raise
            hashes = {url: future.result() for url, future in hashing.items()}
        return len(units) - len(todo), hashes
    return len(units) - len(todo), _in_processes(about, todo, urls, processes, threads, progress)


def _in_processes(
    about: worker.WorkerJob,
    todo: Sequence[tuple[int, Source, Unit]],
    urls: Sequence[str],
    processes: int,
    threads: int,
    progress: Progress,
) -> dict[str, str]:
    import multiprocessing  # here, as one process does without them, and starts a little sooner
    from concurrent.futures.process import BrokenProcessPool, ProcessPoolExecutor

    # Forked, they have the tokenizer open at once; it starts no thread here. Where there are threads already, which a fork
    # does not survive, each starts anew.
    about.tokenizer.flat_backend  # noqa: B018  opened here, once
    context = multiprocessing.get_context("fork" if threading.active_count() == 1 else "spawn")
    shared = context.Array("q", 3)
    progress.share(shared)
    pool = ProcessPoolExecutor(processes, context, worker.begin, (about, shared, threads))
    try:
        waiting: set[Future[Any]] = {pool.submit(worker.do, *unit_job) for unit_job in todo}
        hashes = {url: pool.submit(file_sha256, url) for url in urls}
        waiting |= set(hashes.values())
        while waiting:
            done, waiting = wait(waiting, POLL_SECONDS, FIRST_COMPLETED)
            for future in done:
                future.result()
            progress.draw()
        return {url: future.result() for url, future in hashes.items()}
    except BrokenProcessPool as error:
        raise DataError(
            "a worker process was ended from outside, most often because memory ran out: run the same command again, with "
            "fewer --workers; finished units are kept"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _put_together(
    job: BuildJob,
    units: Sequence[tuple[SourceFile, Unit]],
    parts: Sequence[Part],
    hashes: dict[str, str],
    progress: Progress,
) -> BuildResult:
    lost = sum(part.counts.lost for part in parts)
    records = sum(part.counts.records for part in parts)
    paths = dataset_paths(job.prefix)
    assembly = Assembly(job.prefix, job.dtype, job.multimodal, job.options)
    try:
        if not any(part.counts.documents for part in parts):
            _remove(parts_folder(job.prefix))
            raise DataError(_nothing_left(job, parts))
        progress.writing(sum(part.counts.bytes for part in parts))
        kept = assembly.add_all(parts, progress.wrote)
        rows = _source_rows(job, units, parts, kept, hashes)
        metadata = _metadata(job, rows, parts, assembly)
        assembly.refuse_older_shards()
        for output in assembly.outputs:
            output.writer.prepare()  # all that a full disk may stop, before the first has its final name
        _write_quarantine(paths.quarantine, units, parts)
        for output in assembly.outputs:
            own = [output.documents_of[number] for number in range(len(parts))]
            own_rows = _source_rows(job, units, parts, own, hashes)
            output.writer.finalize({**metadata, **_of_output(output), "sources": own_rows})
    except BaseException:
        assembly.abort()
        atomic_file.discard(paths.quarantine)
        raise
    size = sum(f.file.size for f in job.files)
    return BuildResult(assembly.outputs, metadata, records, lost, len(units), 0, 0.0, size, rows)


def _metadata(job: BuildJob, rows: list[dict[str, Any]], parts: Sequence[Part], assembly: Assembly) -> dict[str, Any]:
    """What NAME.json of every output holds, and by which they are known to be of one run. No date and no host: the same
    inputs give the same bytes."""
    tokenizer = job.tokenizer
    reasons = _reasons(parts)
    known = {
        "tool": "megatron_vlm",
        "tool_version": __version__,
        "kind": job.kind,
        "tokenizer": tokenizer.description(),
        "tokenizer_fingerprint": tokenizer.fingerprint,
        "vocab_size": tokenizer.vocab_size,
        "eod_id": tokenizer.eod_id,
        "image_token_id": tokenizer.image_token_id,
        "pad_id": tokenizer.pad_id,
        "settings": job.settings,
        "quarantine": {reason.value: n for reason in sorted(Reason) if (n := reasons[reason.value])},
        "filtered": merged_filters(parts, assembly.duplicates),
        "sources": rows,
    }
    return {**known, "run": hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()}


def _of_output(output: Output) -> dict[str, Any]:
    known: dict[str, Any] = {
        "documents": output.statistics.documents,
        "sequences": output.writer.sequences,
        "tokens": output.statistics.tokens,
        "images": output.statistics.images,
        "histograms": output.statistics.describe(),
    }
    if output.part:
        known["split"] = output.part
    if output.shard is not None:
        known["shard"] = output.shard
    return known


def _source_rows(
    job: BuildJob,
    units: Sequence[tuple[SourceFile, Unit]],
    parts: Sequence[Part],
    kept: Sequence[int],
    hashes: dict[str, str],
) -> list[dict[str, Any]]:
    """A row for each file, in order; `kept` is how many documents of each part there are."""
    rows: dict[str, dict[str, Any]] = {}
    for f in job.files:
        rows[f.file.url] = {
            "path": f.name or f.file.url,
            "bytes": f.file.size,
            "sha256": hashes[f.file.url],
            "records": 0,
            "documents": 0,
            "quarantined": 0,
        }
    for (file, _), part, documents in zip(units, parts, kept, strict=True):
        row = rows[file.file.url]
        row["records"] += part.counts.records
        row["documents"] += documents
        row["quarantined"] += part.counts.lost
    return list(rows.values())


def _write_quarantine(path: Path, units: Sequence[tuple[SourceFile, Unit]], parts: Sequence[Part]) -> None:
    """One JSON object a line, records counted from 1 in their file; no file where nothing was set aside."""
    if not any(part.counts.lost for part in parts):
        path.unlink(missing_ok=True)
        return
    before: dict[str, int] = {}
    with open(atomic_file.partial_path(path), "w", encoding="utf-8", newline="\n") as stream:
        for (file, _), part in zip(units, parts, strict=True):
            first = before.get(file.file.url, 0)
            for row in part.rejections():
                name = file.name or row["file"]
                shown = {**row, "file": name, "record": first + row["record"] + 1}
                stream.write(json.dumps(shown) + "\n")  # ASCII: a detail may quote text that is no valid Unicode
            before[file.file.url] = first + part.counts.records
    atomic_file.commit(path)


def _reasons(parts: Sequence[Part]) -> Counter[str]:
    """How many records were set aside, by reason."""
    counts: Counter[str] = Counter()
    for part in parts:
        counts.update(part.counts.reasons)
    return counts


def _nothing_left(job: BuildJob, parts: Sequence[Part]) -> str:
    reasons, filtered = _reasons(parts), merged_filters(parts, 0)
    first = next((part.counts.first for part in parts if part.counts.first is not None), None)
    if filtered and first is None:
        return f"every record was filtered out ({filtered}), so nothing was written: loosen the filters"
    if first is None:
        others = f" and {len(job.files) - 1} other input files hold" if len(job.files) > 1 else " holds"
        return f"{job.files[0].file.url}{others} no records; check what they are"
    counts = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
    key = f" {first['key']!r}" if first["key"] else ""
    return (
        f"no record can be used ({counts}), so nothing was written. The first is {first['file']}, record "
        f"{first['record'] + 1}{key}: {first['detail']}. {_remedy(parts)}"
    )


def _remedy(parts: Sequence[Part]) -> str:
    halves = {Reason.MISSING_CAPTION.value, Reason.MISSING_IMAGE.value}
    for part in parts:
        if halves <= part.counts.reasons.keys() and part.counts.first is not None and is_tar(part.counts.first["file"]):
            return (
                "Pictures and captions lie apart in this tar, and members of a record have to be neighbours: write it "
                "anew by `tar --sort=name -cf NAME.tar -C FOLDER .`"
            )
    return "Check the kind of input and the names of its fields"


def _refuse_outputs(job: BuildJob) -> None:
    """Before any work: names that a dataset cannot have, or that hold something else.

    Raises DataError.
    """
    own = dataset_paths(job.prefix)
    shard = None if job.options.shard_bytes is None else 0
    others = [dataset_paths(output_prefixes(job.prefix, part, shard)) for part in job.options.outputs()]
    written = {os.path.realpath(path) for paths in (own, *others) for path in astuple(paths)}
    for f in job.files:
        if not is_remote(f.file.url) and os.path.realpath(f.file.url) in written:
            raise DataError(
                f"{f.file.url} is an input, and has the name of a file of the output {job.prefix}: choose another output, "
                "or a pattern that leaves it out"
            )
    for paths in others:
        refuse_foreign_metadata(paths.metadata)


def _begin_or_resume(folder: Path, fingerprint: str) -> None:
    """Keep the parts of the same job, drop those of another."""
    identity = folder / "job"
    try:
        same = identity.read_text(encoding="utf-8") == fingerprint
    except FileNotFoundError:
        same = False
    for path in folder.iterdir():
        stale = path.name.endswith(".partial") or not same
        if stale and path.name not in ("lock", "job"):
            path.unlink()
    atomic_file.write_text(identity, fingerprint)


def _remove(folder: Path) -> None:
    """At once, and while it is locked: a run that waits for the lock begins with a folder of its own.

    What cannot be removed is no error, as the work is done; `_remove_rest` says what is left.
    """
    done = _done_folder(folder)
    shutil.rmtree(done, ignore_errors=True)
    try:
        os.replace(folder, done)
    except OSError as error:
        _tell_left(folder, error)
        return
    shutil.rmtree(done, ignore_errors=True)  # but for the lock, which NFS keeps under another name as long as it is open


def _remove_rest(folder: Path) -> None:
    """What `_remove` could not while the lock was open."""
    done = _done_folder(folder)
    try:
        shutil.rmtree(done)
    except FileNotFoundError:
        pass  # as nearly always; or another run is removing it too
    except OSError as error:
        _tell_left(done, error)


def _done_folder(folder: Path) -> Path:
    return folder.with_name(folder.name + ".done")


def _tell_left(folder: Path, error: OSError) -> None:
    print(f"{folder} could not be removed ({error.strerror}), and is of no use any more: remove it", file=sys.stderr)


@contextmanager
def _only_run(folder: Path) -> Iterator[None]:
    """Refuse a second run at the same output. The lock ends with the process and its workers, however they end."""
    given_up = time.monotonic() + LOCK_SECONDS
    while (lock := _locked(folder)) is None:
        if time.monotonic() > given_up:
            raise DataError(f"another run is writing {folder.with_suffix('')}: wait for it, or choose another output")
        time.sleep(0.05)
    try:
        with lock:
            yield
    finally:
        _remove_rest(folder)


def _locked(folder: Path) -> TextIO | None:
    """The folder's lock; None where another run has it, or has just ended and removed its folder."""
    try:
        stream = _open_lock(folder)
    except FileNotFoundError:
        return None
    if take_lock(stream, folder / "lock"):
        return stream
    stream.close()
    return None


def _open_lock(folder: Path) -> TextIO:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        names = {path.name for path in folder.iterdir()}
        if strangers := sorted(names - {"lock", "job.partial"} if "job" not in names else ()):
            raise DataError(
                f"{folder} holds {strangers[0]}, which is no part of a run: parts of this one would be written there and "
                "the folder removed at the end; choose another output"
            )
        return open(folder / "lock", "w", encoding="utf-8")
    except OSError as error:
        if error.errno in (*FULL, errno.ENOENT):
            raise
        raise DataError(
            f"{folder}, where the parts are kept, cannot be written ({error.strerror}): choose another output"
        ) from error


def take_lock(stream: IO[Any], path: Path) -> bool:
    """Lock an open file; False where another process has it, or where it is at `path` no longer."""
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK):
            raise  # a file system without locks (Lustre, by default) is no reason not to write there
    try:
        return os.path.samestat(os.fstat(stream.fileno()), path.stat())
    except FileNotFoundError:
        return False


@contextmanager
def full_disk_is_named(prefix: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise DataError(
            f"the disk of {prefix.parent.absolute()} is full ({error.strerror}). Nothing was written under the final name; "
            f"make room and run the same command again: finished units in {parts_folder(prefix)} are kept"
        ) from error
