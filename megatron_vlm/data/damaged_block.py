"""Which documents a range of a dataset's bytes belongs to."""

from __future__ import annotations

from pathlib import Path

from megatron_vlm.data.damage import Damage
from megatron_vlm.data.indexed_format import HEADER
from megatron_vlm.data.indexed_reader import IndexedReader


def damage_of_block(name: str, path: Path, block: range, reason: str, reader: IndexedReader | None) -> Damage:
    """Damage somewhere in some bytes of a file, with the documents that have bytes there.

    Args:
        name: which file: "bin", "idx" or "sequences".
        path: its path.
        block: the bytes.
        reason: what is wrong.
        reader: the dataset; None where its index is not sound, so that nothing can be told.
    """
    documents = _documents(name, path, block, reader) if reader is not None else None
    first, last = documents or (None, None)
    return Damage(path, reason, block.start, block.stop, first, last)


def _documents(name: str, path: Path, block: range, reader: IndexedReader) -> tuple[int, int] | None:
    """First and last document, both included; None where the bytes are of none."""
    count = reader.sequence_count
    if not count or not len(block):
        return None
    if name == "bin":
        return _of_sequences(reader, reader.sequence_of_byte(block.start), reader.sequence_of_byte(block.stop - 1))
    if name == "sequences":
        # an .npy is a header, then the rows
        rows = path.stat().st_size - 8 * count
        return _of_entries(reader, block, rows, 8)
    # An .idx has four columns, and a block may have bytes of several.
    touched = []
    offset = HEADER.size
    for width in (4, 8):
        touched.append(_of_entries(reader, block, offset, width))
        offset += width * count
    entries = len(reader.document_indices)
    if block.start < offset + 8 * entries and block.stop > offset:
        first, last = _entries(block, offset, 8, entries)
        touched.append((min(first, entries - 2), min(last, entries - 2)))
    if reader.multimodal:
        touched.append(_of_entries(reader, block, offset + 8 * entries, 1))
    known = [documents for documents in touched if documents is not None]
    return (min(first for first, _ in known), max(last for _, last in known)) if known else None


def _of_entries(reader: IndexedReader, block: range, offset: int, width: int) -> tuple[int, int] | None:
    """Documents of a column with an entry of `width` bytes a sequence."""
    count = reader.sequence_count
    if block.start >= offset + width * count or block.stop <= offset:
        return None
    return _of_sequences(reader, *_entries(block, offset, width, count))


def _entries(block: range, offset: int, width: int, count: int) -> tuple[int, int]:
    first = max(block.start - offset, 0) // width
    return first, min((block.stop - 1 - offset) // width, count - 1)


def _of_sequences(reader: IndexedReader, first: int, last: int) -> tuple[int, int]:
    return reader.document_of_sequence(first), reader.document_of_sequence(last)
