"""What is wrong with the sequences of a .bin: padding, the framing of pictures, token ids outside the vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from megatron_vlm.data.damage import Damage, Findings
from megatron_vlm.data.indexed_format import IMAGE_MODE, dataset_paths
from megatron_vlm.data.indexed_reader import IndexedReader
from megatron_vlm.data.picture_structure import picture_defect
from megatron_vlm.errors import DataError

_SEQUENCES = 1 << 16  # whose places are in memory at a time
_BYTES = 32 << 20  # between two reports of progress
_ELEMENTS = 1 << 20  # compared at a time


@dataclass(frozen=True, slots=True)
class KnownIds:
    """What token ids of text may be: below `vocab_size`, and not the one that holds a picture's place; None is not known."""

    vocab_size: int | None = None
    image_token_id: int | None = None


def find_record_damage(
    reader: IndexedReader, ids: KnownIds, findings: Findings, advance: Callable[[int], object] | None = None
) -> None:
    """Add what is wrong with the sequences of a reader whose index is sound. `advance` gets the bytes read, now and then."""
    elements: npt.NDArray[Any] = np.frombuffer(reader.data, reader.dtype)
    for sequences in _batches(reader):
        modes = reader.modes[sequences.start : sequences.stop]
        edges = np.flatnonzero(modes[1:] != modes[:-1]) + 1
        bounds = [sequences.start, *(sequences.start + edges).tolist(), sequences.stop]
        for first, after in zip(bounds, bounds[1:], strict=False):
            if reader.modes[first] == IMAGE_MODE:
                for sequence in range(first, after):
                    _check_picture(reader, sequence, findings)
            else:
                _check_text(reader, elements, first, after, ids, findings)
        if advance is not None:
            advance(_end(reader, sequences.stop - 1) - int(reader.sequence_pointers[sequences.start]))


def _batches(reader: IndexedReader) -> Iterator[range]:
    """Sequences in order, a batch of at most `_SEQUENCES` and, but for a single longer one, of about `_BYTES`."""
    for start in range(0, reader.sequence_count, _SEQUENCES):
        blocks = reader.sequence_pointers[start : start + _SEQUENCES] // _BYTES
        cuts = (np.flatnonzero(blocks[1:] != blocks[:-1]) + 1 + start).tolist()
        bounds = [start, *cuts, start + len(blocks)]
        yield from (range(first, after) for first, after in zip(bounds, bounds[1:], strict=False))


def _end(reader: IndexedReader, sequence: int) -> int:
    return int(reader.sequence_pointers[sequence]) + int(reader.sequence_lengths[sequence]) * reader.dtype.itemsize


def _damage(reader: IndexedReader, sequence: int, reason: str) -> Damage:
    document = reader.document_of_sequence(sequence)
    start, stop = int(reader.sequence_pointers[sequence]), _end(reader, sequence)
    return Damage(dataset_paths(reader.prefix).data, f"sequence {sequence}: {reason}", start, stop, document, document)


def _check_picture(reader: IndexedReader, sequence: int, findings: Findings) -> None:
    try:
        start, stop = reader.image_place(sequence)
    except DataError:
        findings.add("picture", _damage(reader, sequence, "its pad count is none that an image record can have"))
        return
    view = memoryview(reader.data)
    if any(view[stop : _end(reader, sequence)]):
        findings.add("picture", _damage(reader, sequence, "its padding is not zero"))
    defect = picture_defect(view[start:stop])
    if defect is not None:
        findings.add("picture", _damage(reader, sequence, defect))


def _check_text(
    reader: IndexedReader, elements: npt.NDArray[Any], first: int, after: int, ids: KnownIds, findings: Findings
) -> None:
    """The text sequences `first` to `after`, which lie one after another."""
    size = reader.dtype.itemsize
    start, stop = int(reader.sequence_pointers[first]) // size, _end(reader, after - 1) // size
    for at in range(start, stop, _ELEMENTS):
        part = elements[at : min(at + _ELEMENTS, stop)]
        if _sound(part, ids):
            continue
        wrong = part < 0
        if ids.vocab_size is not None:
            wrong |= part >= ids.vocab_size
        if ids.image_token_id is not None:
            wrong |= part == ids.image_token_id

        def describe(place: int, at: int = at, part: npt.NDArray[Any] = part) -> Damage:
            sequence = reader.sequence_of_byte((at + int(place)) * size)
            return _damage(reader, sequence, _of_id(int(part[place]), ids))

        findings.add_at("token id", np.flatnonzero(wrong), describe)


def _sound(part: npt.NDArray[Any], ids: KnownIds) -> bool:
    """The usual case, in as few passes as it takes."""
    if part.min() < 0 or (ids.vocab_size is not None and part.max() >= ids.vocab_size):
        return False
    return ids.image_token_id is None or not (part == ids.image_token_id).any()


def _of_id(token_id: int, ids: KnownIds) -> str:
    if token_id == ids.image_token_id:
        return f"its text holds the image placeholder's id {token_id}"
    known = "" if ids.vocab_size is None else f" of {ids.vocab_size}"
    return f"token id {token_id} is outside the vocabulary{known}"
