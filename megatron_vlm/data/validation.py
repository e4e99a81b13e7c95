"""Whether a finished dataset is what was written: every byte by its checksums, or else every record by its structure."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from megatron_vlm.data.checksums import ALGORITHM, block_digest, blocks_of
from megatron_vlm.data.damage import Damage, Findings
from megatron_vlm.data.damaged_block import damage_of_block
from megatron_vlm.data.index_damage import find_index_damage
from megatron_vlm.data.indexed_format import IMAGE_MODE, IndexedPaths, dataset_paths
from megatron_vlm.data.indexed_reader import IndexedReader
from megatron_vlm.data.kept_features.feature_facts import FEATURES
from megatron_vlm.data.record_damage import KnownIds, find_record_damage
from megatron_vlm.data.sequence_facts import open_sequence_facts
from megatron_vlm.errors import DataError

Advance = Callable[[int], object]
_ROWS = 1 << 20  # of the sidecar, in memory at a time


@dataclass
class ValidationReport:
    """What was found.

    Attributes:
        prefix: the dataset.
        findings: its damage.
        checked: what was looked at, in words.
        skipped: what was not, and why.
        documents, sequences: of the index; 0 where it cannot be read.
        bytes_read: of its files.
        seconds: wall-clock time.
    """

    prefix: Path
    findings: Findings = field(default_factory=Findings)
    checked: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    documents: int = 0
    sequences: int = 0
    bytes_read: int = 0
    seconds: float = 0.0

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong."""
        return not self.findings.total

    def describe(self) -> str:
        """Some lines for a person, the damage first."""
        lines = [f"  {damage.describe()}" for damage in self.findings.listed]
        if self.findings.unlisted:
            lines.append(f"  and {self.findings.unlisted:,} more")
        lines += [f"  checked: {', '.join(self.checked)}"] if self.checked else []
        lines += [f"  not checked: {reason}" for reason in self.skipped]
        rate = self.bytes_read / max(self.seconds, 1e-9) / 1e9
        speed = f"{self.bytes_read / 1e9:,.3f} GB in {self.seconds:,.1f} s, {rate:,.2f} GB/s"
        places = "place" if self.findings.total == 1 else "places"
        verdict = "sound" if self.sound else f"DAMAGED in {self.findings.total:,} {places}"
        size = f"{self.documents:,} documents, {self.sequences:,} sequences"
        return "\n".join([f"{self.prefix}: {verdict} ({size}; {speed})", *lines])

    def as_json(self) -> dict[str, Any]:
        """The same for a program."""
        return {
            "prefix": str(self.prefix),
            "sound": self.sound,
            "damage": [damage.as_json() for damage in self.findings.listed],
            "damage_counts": self.findings.counts,
            "checked": self.checked,
            "skipped": self.skipped,
            "documents": self.documents,
            "sequences": self.sequences,
            "bytes_read": self.bytes_read,
            "seconds": round(self.seconds, 3),
        }


def validate_dataset(
    prefix: Path | str,
    *,
    quick: bool = False,
    checksums: bool = True,
    workers: int | None = None,
    advance: Advance | None = None,
) -> ValidationReport:
    """Check a dataset; whatever is in its files, this reports rather than raises.

    Args:
        prefix: path without suffix.
        quick: read the .idx and the sidecar and not the .bin, of which only the size is compared.
        checksums: compare the sha256 of every block with NAME.json where that has them. Otherwise, and for a dataset that
            has none, every record is looked at.
        workers: threads that hash; the cores by default.
        advance: called with a number of bytes as they are read, by one thread at a time; `bytes_to_read` is the total.

    Raises:
        DataError: there is no dataset of this name at all.
    """
    begun = time.monotonic()
    report = ValidationReport(Path(prefix))
    paths = dataset_paths(prefix)
    if not paths.index.exists() and not paths.data.exists():
        raise DataError(f"neither {paths.index} nor {paths.data} exists; a dataset is named without suffix")

    lock = threading.Lock()

    def count(size: int) -> None:
        with lock:  # threads that hash come here
            report.bytes_read += size
            if advance is not None:
                advance(size)

    metadata = _metadata(paths, report)
    reader, sound = _index(paths, report, shared=metadata.get("kind") == FEATURES)
    _sidecar(paths, reader if sound else None, report)
    _counts(paths, reader if sound else None, metadata, report)
    recorded = metadata.get("checksums") if checksums else None
    hashed = recorded is not None and _checksums(paths, recorded, reader if sound else None, quick, workers, count, report)
    if not checksums:
        report.skipped.append("checksums, as asked")
    elif recorded is None:
        report.skipped.append(f"checksums, which {paths.metadata.name} does not have")
    if quick:
        report.skipped.append(f"the contents of {paths.data.name} (--quick)")
    elif not hashed:
        _records(paths, reader if sound else None, metadata, count, report)
    report.seconds = time.monotonic() - begun
    return report


def bytes_to_read(prefix: Path | str, quick: bool = False) -> int:
    """About how much `validate_dataset` reads: the sizes of the files, for a progress bar."""
    paths = dataset_paths(prefix)
    files = (paths.index, paths.sequences) if quick else (paths.index, paths.sequences, paths.data)
    return sum(file.stat().st_size for file in files if file.is_file())


def _metadata(paths: IndexedPaths, report: ValidationReport) -> dict[str, Any]:
    try:
        return IndexedReader.read_metadata(paths.metadata)
    except DataError as error:
        report.findings.add("metadata", Damage(paths.metadata, _reason(error, paths.metadata)))
        return {}


def _index(paths: IndexedPaths, report: ValidationReport, shared: bool) -> tuple[IndexedReader | None, bool]:
    """The dataset as it is opened, None where it cannot be, and whether its index is sound."""
    try:
        reader = IndexedReader(report.prefix, verify=False)
    except (DataError, OSError) as error:
        report.findings.add("index", Damage(paths.index, _reason(error, paths.index)))
        return None, False
    report.documents, report.sequences = reader.document_count, reader.sequence_count
    report.checked.append("index")
    return reader, find_index_damage(reader, report.findings, shared)


def _sidecar(paths: IndexedPaths, reader: IndexedReader | None, report: ValidationReport) -> None:
    """Whether its rows can be what they are of."""
    if reader is None or not paths.sequences.exists():
        return
    try:
        facts = open_sequence_facts(report.prefix, reader.sequence_count)
    except Exception as error:  # numpy raises whatever it likes on a damaged header: OverflowError, SyntaxError, ...
        report.findings.add("sidecar", Damage(paths.sequences, _reason(error, paths.sequences)))
        return
    if facts is None:
        report.findings.add("sidecar", Damage(paths.sequences, "it is no file"))
        return

    def describe(sequence: int) -> Damage:
        what = "picture of (height, width)" if reader.modes[sequence] == IMAGE_MODE else "text of"
        document = reader.document_of_sequence(sequence)
        reason = f"sequence {sequence} is a {what} {tuple(facts[sequence].tolist())}"
        return Damage(paths.sequences, reason, None, None, document, document)

    for start in range(0, len(facts), _ROWS):
        rows = np.asarray(facts[start : start + _ROWS])
        pictures = reader.modes[start : start + _ROWS] == IMAGE_MODE
        text = (rows[:, 1] == 0) & ((rows[:, 0] == 0) | (rows[:, 0] == 1))
        wrong = np.where(pictures, (rows < 0).any(axis=1), ~text)
        report.findings.add_at("sidecar", np.flatnonzero(wrong) + start, lambda i: describe(int(i)))
    report.checked.append("sidecar")


def _counts(paths: IndexedPaths, reader: IndexedReader | None, metadata: dict[str, Any], report: ValidationReport) -> None:
    """Whether NAME.json speaks of this index."""
    if reader is None or not {"documents", "tokens", "images"} & metadata.keys():
        return
    pictures = tokens = 0
    for start in range(0, reader.sequence_count, _ROWS):
        is_picture = reader.modes[start : start + _ROWS] == IMAGE_MODE
        pictures += int(is_picture.sum())
        tokens += int(reader.sequence_lengths[start : start + _ROWS][~is_picture].sum(dtype=np.int64))
    found = {"documents": reader.document_count, "tokens": tokens, "images": pictures}
    for name, number in found.items():
        if name in metadata and metadata[name] != number:
            reason = f"it says {metadata[name]!r} {name}, and the index has {number}"
            report.findings.add("counts", Damage(paths.metadata, reason))
    report.checked.append("counts")


def _checksums(
    paths: IndexedPaths,
    recorded: Any,
    reader: IndexedReader | None,
    quick: bool,
    workers: int | None,
    advance: Advance,
    report: ValidationReport,
) -> bool:
    """Compare every block of every file; whether the .bin was."""
    findings = report.findings
    problem = _unusable(recorded)
    if problem is not None:
        findings.add("metadata", Damage(paths.metadata, problem))
        return False
    files = {"idx": paths.index, "sequences": paths.sequences, "bin": paths.data}
    for name, path in files.items():
        if name == "bin" and quick:
            continue
        if name not in recorded:
            if path.exists():
                report.skipped.append(f"the checksum of {path.name}, which {paths.metadata.name} does not have")
            continue
        _compare_blocks(name, path, recorded[name], recorded["block_bytes"], reader, workers, advance, findings)
    report.checked.append("checksums")
    return "bin" in recorded


def _unusable(recorded: Any) -> str | None:
    """What keeps recorded checksums from being compared."""
    if not isinstance(recorded, dict) or recorded.get("algorithm") != ALGORITHM:
        return f'its "checksums" are no {ALGORITHM} of blocks'
    block = recorded.get("block_bytes")
    if not isinstance(block, int) or isinstance(block, bool) or block < 1:
        return f'its "checksums" are of blocks of {block!r} bytes'
    for name in ("bin", "idx", "sequences"):
        digests = recorded.get(name, [])
        if not isinstance(digests, list) or not all(isinstance(digest, str) for digest in digests):
            return f'its "checksums" of "{name}" are no list of digests'
    return None


def _compare_blocks(
    name: str,
    path: Path,
    digests: list[str],
    block_bytes: int,
    reader: IndexedReader | None,
    workers: int | None,
    advance: Advance,
    findings: Findings,
) -> None:
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError as error:
        findings.add("checksum", Damage(path, f"it cannot be opened: {error.strerror}"))
        return
    try:
        blocks = blocks_of(os.fstat(descriptor).st_size, block_bytes)
        if len(blocks) != len(digests):
            reason = f"it has {len(blocks)} blocks of {block_bytes} bytes, and {len(digests)} checksums were recorded"
            findings.add("checksum", Damage(path, reason))
        with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
            found = pool.map(partial(_digest, descriptor, advance), blocks)
            for block, digest, expected in zip(blocks, found, digests, strict=False):
                if digest != expected:
                    reason = f"its sha256 is another than recorded ({digest})" if len(digest) == 64 else digest
                    findings.add("checksum", damage_of_block(name, path, block, reason, reader))
    finally:
        os.close(descriptor)


def _digest(descriptor: int, advance: Advance, block: range) -> str:
    """The digest, or in words why there is none."""
    try:
        return block_digest(descriptor, block, advance)
    except (OSError, EOFError) as error:
        return f"it cannot be read: {error}"


def _records(
    paths: IndexedPaths,
    reader: IndexedReader | None,
    metadata: dict[str, Any],
    advance: Advance,
    report: ValidationReport,
) -> None:
    if reader is None:
        report.skipped.append("records, as the index does not tell where they are")
        return
    known = {name: metadata.get(name) for name in ("vocab_size", "image_token_id")}
    whole = {
        name: value if isinstance(value, int) and not isinstance(value, bool) else None for name, value in known.items()
    }
    find_record_damage(reader, KnownIds(**whole), report.findings, advance)
    report.checked.append("records")
    if whole["vocab_size"] is None:
        report.skipped.append(f"the range of token ids: {paths.metadata.name} does not say how many there are")


def _reason(error: BaseException, path: Path) -> str:
    """An error's message without the path that it begins with, which is said anyway."""
    return str(error).removeprefix(f"{path} ").removeprefix(f"{path}: ")
