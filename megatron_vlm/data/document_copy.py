"""Documents of finished datasets copied as they are into a new one, with what is known of their sequences.

The .bin is copied in runs of documents that lie one after another, so a whole dataset is one copy inside the kernel. The
columns of the .idx are written part by part: memory does not grow with the number of documents.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from megatron_vlm.data import atomic_file
from megatron_vlm.data.building.statistics import Statistics
from megatron_vlm.data.byte_copy import ByteCopier
from megatron_vlm.data.checksums import describe_checksums, file_digests
from megatron_vlm.data.indexed_format import (
    IMAGE_MODE,
    IndexedPaths,
    dataset_paths,
    index_header,
)
from megatron_vlm.data.indexed_reader import IndexedReader
from megatron_vlm.data.indexed_writer import refuse_foreign_metadata
from megatron_vlm.data.kept_features.feature_facts import FEATURES
from megatron_vlm.data.picture_size import shown_size
from megatron_vlm.data.sequence_facts import open_sequence_facts
from megatron_vlm.errors import DataError

_DOCUMENTS = 1 << 16  # whose sequences are in memory at a time

Advance = Callable[[int], object]


@dataclass(frozen=True)
class Selection:
    """Documents of one dataset, in the order in which they are to be copied.

    Attributes:
        reader: the dataset.
        documents: their numbers, int64[d] ascending, or a range.
    """

    reader: IndexedReader
    documents: npt.NDArray[np.int64] | range

    @classmethod
    def everything(cls, reader: IndexedReader) -> Selection:
        """All documents of a dataset."""
        return cls(reader, range(reader.document_count))

    def parts(self) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
        """For some documents at a time: the sequences of each (their number, int64[d]), and which these are (int64[s])."""
        starts = self.reader.document_indices
        for at in range(0, len(self.documents), _DOCUMENTS):
            documents = np.asarray(self.documents[at : at + _DOCUMENTS], np.int64)
            first, counts = starts[documents], starts[documents + 1] - starts[documents]
            before = np.cumsum(counts) - counts
            yield counts, np.repeat(first - before, counts) + np.arange(int(counts.sum()))


@dataclass(frozen=True)
class CopyCounts:
    """What is in some selections together; `tokens` are those of text, `data_bytes` the size of the .bin."""

    documents: int
    sequences: int
    tokens: int
    images: int
    data_bytes: int

    def describe(self) -> dict[str, int]:
        """As NAME.json has them."""
        return {
            "documents": self.documents,
            "sequences": self.sequences,
            "tokens": self.tokens,
            "images": self.images,
        }


def count_selected(selections: Sequence[Selection]) -> CopyCounts:
    """One pass over the index of the selected documents. Raises DataError where an index is damaged."""
    documents = sequences = tokens = images = size = 0
    for selection in selections:
        reader = selection.reader
        reader.verify()
        documents += len(selection.documents)
        for _, numbers in selection.parts():
            lengths, pictures = reader.sequence_lengths[numbers], reader.modes[numbers] == IMAGE_MODE
            total = int(lengths.sum(dtype=np.int64))
            sequences += len(numbers)
            images += int(pictures.sum())
            tokens += int(lengths[~pictures].sum(dtype=np.int64))
            size += total * reader.dtype.itemsize
    return CopyCounts(documents, sequences, tokens, images, size)


def copy_documents(
    output: Path | str,
    selections: Sequence[Selection],
    counts: CopyCounts,
    metadata: Mapping[str, Any],
    *,
    quarantine: Sequence[Path] = (),
    workers: int | None = None,
    advance: Advance | None = None,
) -> dict[str, Any]:
    """Write a dataset of the selected documents; all of it, or nothing.

    Args:
        output: prefix of the new dataset, which replaces one that is there.
        selections: of datasets that agree in dtype and in whether they are multimodal.
        counts: `count_selected` of them.
        metadata: for NAME.json, but for what is known here: counts, histograms and checksums.
        quarantine: .quarantine.jsonl files that are put together into the new one; missing ones are passed over.
        workers: threads that hash; the cores by default.
        advance: called with numbers of bytes that add up to `counts.data_bytes` twice: written, then hashed.

    Returns:
        What NAME.json says.

    Raises:
        DataError: `output` is one of the datasets that are read, its NAME.json belongs to something else, an index is
            damaged, a dataset holds features, or the disk is full or otherwise fails.
    """
    paths = dataset_paths(output)
    _refuse_own_input(paths, selections)
    _refuse_features(selections)
    refuse_foreign_metadata(paths.metadata)
    finals = (paths.data, paths.sequences, paths.quarantine, paths.metadata, paths.index)
    try:
        paths.data.parent.mkdir(parents=True, exist_ok=True)
        _write_data(atomic_file.partial_path(paths.data), selections, advance)
        with open(atomic_file.partial_path(paths.index), "wb") as index:
            _write_index(index, selections, counts)
        statistics = Statistics()
        facts = _write_facts(atomic_file.partial_path(paths.sequences), selections, counts, statistics)
        rejected = _join(atomic_file.partial_path(paths.quarantine), quarantine)
        digests = {
            "bin": file_digests(atomic_file.partial_path(paths.data), workers=workers, advance=advance),
            "idx": file_digests(atomic_file.partial_path(paths.index), workers=workers),
        }
        if facts:
            digests["sequences"] = file_digests(atomic_file.partial_path(paths.sequences), workers=workers)
        counted = {**counts.describe(), "histograms": statistics.describe()}
        known = {**metadata, **counted, "checksums": describe_checksums(digests)}
        atomic_file.write_aside(paths.metadata, json.dumps(known, indent=2, ensure_ascii=False) + "\n")
        optional = {paths.sequences: facts, paths.quarantine: rejected}
        written = [final for final, there in optional.items() if there]
        stale = [final for final, there in optional.items() if not there]  # of the dataset that was here before
        # Between the first and the last rename there is no dataset at this name, rather than half of two of them.
        atomic_file.commit_together([paths.data, *written, paths.metadata, paths.index], stale)
    except BaseException as error:
        for final in finals:
            atomic_file.discard(final)
        if isinstance(error, OSError):
            raise DataError(f"{paths.data} cannot be written: {error}; free some space, or choose another output") from error
        raise
    return known


def _refuse_own_input(paths: IndexedPaths, selections: Sequence[Selection]) -> None:
    for selection in selections:
        given = dataset_paths(selection.reader.prefix)
        if paths.data.exists() and paths.data.samefile(given.data):
            raise DataError(f"{paths.data} is read here and cannot be written at the same time: choose another output")


def _refuse_features(selections: Sequence[Selection]) -> None:
    """They are of all pictures of one dataset, and their NAME.json counts these."""
    for selection in selections:
        prefix = selection.reader.prefix
        if selection.reader.metadata.get("kind") == FEATURES:
            raise DataError(
                f"{prefix} holds features of a dataset's pictures, which fit that dataset alone: merge or sample the "
                "dataset, and run megatron-vlm encode on what comes out"
            )


def _write_data(partial: Path, selections: Sequence[Selection], advance: Advance | None) -> None:
    target = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        for selection in selections:
            reader = selection.reader
            with ByteCopier(dataset_paths(reader.prefix).data, reader.data, target, advance) as copier:
                for _, numbers in selection.parts():
                    for start, stop in _byte_runs(reader, numbers):
                        copier.append(start, stop)
    finally:
        os.close(target)


def _byte_runs(reader: IndexedReader, sequences: npt.NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """The bytes of some sequences, in order, those that lie one after another taken together."""
    if not len(sequences):
        return
    starts = reader.sequence_pointers[sequences]
    stops = starts + reader.sequence_lengths[sequences] * np.int64(reader.dtype.itemsize)
    cuts = np.flatnonzero(starts[1:] != stops[:-1])
    firsts, lasts = np.concatenate([starts[:1], starts[cuts + 1]]), np.concatenate([stops[cuts], stops[-1:]])
    yield from zip(firsts.tolist(), lasts.tolist(), strict=True)


def _write_index(index: BinaryIO, selections: Sequence[Selection], counts: CopyCounts) -> None:
    dtype = selections[0].reader.dtype
    multimodal = any(selection.reader.multimodal for selection in selections)
    index.write(index_header(dtype, counts.sequences, counts.documents))

    def each() -> Iterator[tuple[IndexedReader, npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
        for selection in selections:
            for per_document, numbers in selection.parts():
                yield selection.reader, per_document, numbers

    for reader, _, numbers in each():
        index.write(reader.sequence_lengths[numbers].astype("<i4").tobytes())
    end = 0
    for reader, _, numbers in each():
        ends = end + np.cumsum(reader.sequence_lengths[numbers] * np.int64(dtype.itemsize))
        index.write(np.concatenate([[end], ends])[:-1].astype("<i8").tobytes())
        end = int(ends[-1]) if len(ends) else end
    index.write(np.zeros(1, "<i8").tobytes())
    end = 0
    for _, per_document, _ in each():
        ends = end + np.cumsum(per_document)
        index.write(ends.astype("<i8").tobytes())
        end = int(ends[-1])
    if multimodal:
        for reader, _, numbers in each():
            index.write(reader.modes[numbers].tobytes())


def _write_facts(partial: Path, selections: Sequence[Selection], counts: CopyCounts, statistics: Statistics) -> bool:
    """The sidecar, where any of the datasets has one; whether it was written. Rows that are missing are made.

    All documents are added to `statistics`.
    """
    known = [open_sequence_facts(selection.reader.prefix, selection.reader.sequence_count) for selection in selections]
    if all(facts is None for facts in known):
        for selection in selections:
            for per_document, numbers in selection.parts():
                _add_statistics(statistics, selection.reader, per_document, numbers, None)
        return False
    header = io.BytesIO()
    shape = (counts.sequences, 2)
    np.lib.format.write_array_header_1_0(header, {"descr": "<i4", "fortran_order": False, "shape": shape})
    with open(partial, "wb") as stream:
        stream.write(header.getvalue())
        for selection, facts in zip(selections, known, strict=True):
            for per_document, numbers in selection.parts():
                rows = _made_facts(selection.reader, numbers) if facts is None else np.asarray(facts[numbers])
                stream.write(rows.astype("<i4").tobytes())
                _add_statistics(statistics, selection.reader, per_document, numbers, rows)
    return True


def _add_statistics(
    statistics: Statistics,
    reader: IndexedReader,
    per_document: npt.NDArray[np.int64],
    sequences: npt.NDArray[np.int64],
    facts: npt.NDArray[np.int32] | None,
) -> None:
    statistics.add(reader.sequence_lengths[sequences], reader.modes[sequences], facts, per_document)


def _made_facts(reader: IndexedReader, sequences: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
    """Text is learnt; a picture is as large as its header says, (0, 0) where that says nothing."""
    rows = np.zeros((len(sequences), 2), np.int32)
    pictures = reader.modes[sequences] == IMAGE_MODE
    rows[~pictures, 0] = 1
    for row in np.flatnonzero(pictures).tolist():
        rows[row] = shown_size(reader.image_bytes(int(sequences[row]))) or (0, 0)
    return rows


def _join(partial: Path, files: Sequence[Path]) -> bool:
    """Files one after another; whether there was any."""
    found = [file for file in files if file.is_file()]
    if found:
        with open(partial, "wb") as stream:
            for file in found:
                stream.writelines(file.open("rb"))
    return bool(found)
