"""The packs of a window into the rows that training goes by: what each gives of each source, and its spans in order."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from megatron_vlm.ops.native import native_operators

Integers = npt.NDArray[np.int64]


class PackedPieces(NamedTuple):
    """k pieces in m packs: int64[k] the entry of each, first position beyond the entry's own, positions; int64[m + 1] where
    each pack begins."""

    entry: Integers
    start: Integers
    length: Integers
    pack_starts: Integers


class EntryColumns(NamedTuple):
    """n entries that were drawn, int64[n] each: see `data/upcoming.py`."""

    source: Integers
    document: Integers
    start: Integers
    begins: Integers
    visual: Integers
    squares: Integers
    pictures: Integers


def pack_amounts(pieces: PackedPieces, entries: EntryColumns, sources: int) -> tuple[Integers, Integers, Integers]:
    """Of each pack and source, int64[m, sources] each: positions, rows of pictures, documents that begin.

    Pictures, and the beginning of a document, count where a piece begins at its entry's beginning.
    """
    native = native_operators()
    if native is None:
        return pack_amounts_reference(pieces, entries, sources)
    positions, visual, documents = native.pack_amounts(tuple(pieces), tuple(entries), sources)
    return positions.reshape(-1, sources), visual.reshape(-1, sources), documents.reshape(-1, sources)


def pack_amounts_reference(pieces: PackedPieces, entries: EntryColumns, sources: int) -> tuple[Integers, Integers, Integers]:
    """`pack_amounts` in plain numpy."""
    packs = len(pieces.pack_starts) - 1
    cell = np.repeat(np.arange(packs) * sources, np.diff(pieces.pack_starts)) + entries.source[pieces.entry]
    whole = pieces.start == 0

    def summed(values: Integers) -> Integers:
        # sums of whole numbers below 2^53: exact in bincount's doubles
        table = np.bincount(cell, weights=values, minlength=packs * sources)
        return table.astype(np.int64).reshape(packs, sources)

    visual, begins = (column[pieces.entry] * whole for column in (entries.visual, entries.begins))
    return summed(pieces.length), summed(visual), summed(begins)


def window_rows(pieces: PackedPieces, entries: EntryColumns, order: Integers) -> tuple[Integers, Integers, Integers]:
    """The pieces of the packs in `order`, int64[m]: int64[k, 5] source, document, first position, positions, pictures;
    int64[k, 2] rows of pictures and the sum of the squares of each one's; int64[m + 1] where each pack begins."""
    native = native_operators()
    if native is None:
        return window_rows_reference(pieces, entries, order)
    spans, visual, starts = native.window_rows(tuple(pieces), tuple(entries), np.ascontiguousarray(order))
    return spans.reshape(-1, 5), visual.reshape(-1, 2), starts


def window_rows_reference(
    pieces: PackedPieces, entries: EntryColumns, order: Integers
) -> tuple[Integers, Integers, Integers]:
    """`window_rows` in plain numpy."""
    sizes = np.diff(pieces.pack_starts)[order]
    taken = np.repeat(pieces.pack_starts[:-1][order] - np.cumsum(sizes) + sizes, sizes) + np.arange(len(pieces.entry))
    of, first, length = pieces.entry[taken], pieces.start[taken], pieces.length[taken]
    whole = first == 0
    spans = [entries.source[of], entries.document[of], entries.start[of] + first, length, entries.pictures[of] * whole]
    visual = [entries.visual[of] * whole, entries.squares[of] * whole]
    return np.stack(spans, axis=1), np.stack(visual, axis=1), np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])
