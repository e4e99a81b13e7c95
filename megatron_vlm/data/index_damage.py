"""Everything that is wrong with the numbers of an .idx, found in one pass over each of its columns."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from megatron_vlm.data.damage import Damage, Findings
from megatron_vlm.data.indexed_format import HEADER, IMAGE_MODE, dataset_paths
from megatron_vlm.data.indexed_reader import IndexedReader

_CHUNK = 1 << 20  # entries that are in memory at a time


def find_index_damage(reader: IndexedReader, findings: Findings, shared: bool = False) -> bool:
    """Add what is wrong with the index of an unverified reader; whether it is sound.

    Sound means that documents run from the first sequence to the last in order, and that the sequences lie one after another
    in the .bin without gaps, as every writer of the format leaves them, from its first byte to its last. Of `shared`
    sequences several may be one place of the .bin, as those of features are: they lie inside, and one of them ends it.
    """
    before = findings.total
    _documents(reader, findings)
    _lengths(reader, findings)
    (_inside if shared else _one_after_another)(reader, findings)
    if reader.multimodal:
        _modes(reader, findings)
    return findings.total == before


def _documents(reader: IndexedReader, findings: Findings) -> None:
    index, starts, count = dataset_paths(reader.prefix).index, reader.document_indices, reader.sequence_count
    column = HEADER.size + 12 * count

    def wrong(entry: int, expected: str) -> Damage:
        place = column + 8 * entry
        document = min(entry, max(reader.document_count - 1, 0))
        reason = f"entry {entry} of the document index is {int(starts[entry])}, which should be {expected}"
        return Damage(index, reason, place, place + 8, document, document)

    if starts[0] != 0:
        findings.add("documents", wrong(0, "0"))
    if starts[-1] != count:
        findings.add("documents", wrong(len(starts) - 1, f"the number of sequences, {count}"))
    for first, part in _chunks(starts, overlap=1):
        backwards = np.flatnonzero(part[1:] < part[:-1]) + first + 1
        findings.add_at("documents", backwards, lambda i: wrong(int(i), f"at least the one before, {int(starts[i - 1])}"))
        beyond = np.flatnonzero((part < 0) | (part > count)) + first
        findings.add_at("documents", beyond, lambda i: wrong(int(i), f"within 0 and {count}"))


def _lengths(reader: IndexedReader, findings: Findings) -> None:
    index, lengths = dataset_paths(reader.prefix).index, reader.sequence_lengths

    def negative(sequence: int) -> Damage:
        place = HEADER.size + 4 * sequence
        return Damage(index, f"sequence {sequence} has length {int(lengths[sequence])}", place, place + 4)

    for first, part in _chunks(lengths):
        findings.add_at("lengths", np.flatnonzero(part < 0) + first, lambda i: negative(int(i)))


def _inside(reader: IndexedReader, findings: Findings) -> None:
    paths, count, size = dataset_paths(reader.prefix), reader.sequence_count, len(reader.data)
    lengths, pointers = reader.sequence_lengths, reader.sequence_pointers

    def outside(sequence: int) -> Damage:
        place = HEADER.size + 4 * count + 8 * sequence
        reason = (
            f"sequence {sequence} begins at byte {int(pointers[sequence])} of the .bin and is not inside its {size} bytes"
        )
        return Damage(paths.index, reason, place, place + 8)

    furthest = 0
    for first, part in _chunks(pointers):
        room = (size - np.clip(part, 0, size)) // reader.dtype.itemsize
        wrong = (part < 0) | (part > size) | (lengths[first : first + len(part)] > room)
        findings.add_at("pointers", np.flatnonzero(wrong) + first, lambda i: outside(int(i)))
        ends = part[~wrong] + lengths[first : first + len(part)][~wrong] * np.int64(reader.dtype.itemsize)
        furthest = max(furthest, int(ends.max(initial=0)))
    if furthest != size:
        reason = f"it goes on: the index ends at byte {furthest}, the file at {size}"
        findings.add("size", Damage(paths.data, reason, furthest, size))


def _one_after_another(reader: IndexedReader, findings: Findings) -> None:
    paths, count, itemsize = dataset_paths(reader.prefix), reader.sequence_count, reader.dtype.itemsize
    lengths, pointers = reader.sequence_lengths, reader.sequence_pointers

    def apart(sequence: int) -> Damage:
        place = HEADER.size + 4 * count + 8 * sequence
        expected = int(pointers[sequence - 1]) + int(lengths[sequence - 1]) * itemsize if sequence else 0
        found = int(pointers[sequence])
        reason = f"sequence {sequence} begins at byte {found} of the .bin, and what is before it ends at {expected}"
        return Damage(paths.index, reason, place, place + 8)

    if count and pointers[0] != 0:
        findings.add("pointers", apart(0))
    for first, part in _chunks(pointers, overlap=1):
        ends = part[:-1] + lengths[first : first + len(part) - 1] * np.int64(itemsize)
        findings.add_at("pointers", np.flatnonzero(part[1:] != ends) + first + 1, lambda i: apart(int(i)))
    end = int(pointers[-1]) + int(lengths[-1]) * itemsize if count else 0
    size = len(reader.data)
    if end != size:
        what = "is cut short" if size < end else "goes on"
        reason = f"it {what}: the index ends at byte {end}, the file at {size}"
        findings.add("size", Damage(paths.data, reason, min(end, size), max(end, size)))


def _modes(reader: IndexedReader, findings: Findings) -> None:
    index, modes = dataset_paths(reader.prefix).index, reader.modes
    column = HEADER.size + 12 * reader.sequence_count + 8 * len(reader.document_indices)

    def neither(sequence: int) -> Damage:
        place = column + sequence
        reason = f"sequence {sequence} has mode {int(modes[sequence])}, neither text (0) nor image (1)"
        return Damage(index, reason, place, place + 1)

    for first, part in _chunks(modes):
        findings.add_at("modes", np.flatnonzero(part.view(np.uint8) > IMAGE_MODE) + first, lambda i: neither(int(i)))


def _chunks(column: npt.NDArray[Any], overlap: int = 0) -> Iterator[tuple[int, npt.NDArray[Any]]]:
    """(number of the first entry, entries), each part beginning with the last `overlap` of the one before."""
    for start in range(0, len(column) - overlap, _CHUNK):
        yield start, column[start : start + _CHUNK + overlap]
