"""Rows of a window: natively the same as in numpy, and what is outside its range is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_vlm.ops.native import native_operators
from megatron_vlm.ops.window_rows import (
    EntryColumns,
    PackedPieces,
    pack_amounts,
    pack_amounts_reference,
    window_rows,
    window_rows_reference,
)

SOURCES = 3


@st.composite
def windows(draw: st.DrawFn) -> tuple[PackedPieces, EntryColumns, np.ndarray]:
    sizes = draw(st.lists(st.integers(0, 4), max_size=6))
    entries, pieces = draw(st.integers(1, 8)), sum(sizes)

    def column(most: int, count: int = entries) -> np.ndarray:
        return np.array(draw(st.lists(st.integers(0, most), min_size=count, max_size=count)), np.int64)

    columns = EntryColumns(column(SOURCES - 1), *(column(2**40) for _ in range(6)))
    starts = np.cumsum([0, *sizes]).astype(np.int64)
    packed = PackedPieces(column(entries - 1, pieces), column(2, pieces), column(2**20, pieces), starts)
    return packed, columns, np.array(draw(st.permutations(range(len(sizes)))), np.int64)


@given(windows())
def test_native_and_numpy_agree(window: tuple[PackedPieces, EntryColumns, np.ndarray]) -> None:
    assert native_operators() is not None
    packed, columns, order = window
    small = columns._replace(visual=columns.visual % 1000, begins=columns.begins % 2)
    for ours, theirs in (
        (pack_amounts(packed, small, SOURCES), pack_amounts_reference(packed, small, SOURCES)),
        (window_rows(packed, columns, order), window_rows_reference(packed, columns, order)),
    ):
        for one, other in zip(ours, theirs, strict=True):
            assert one.shape == other.shape
            assert one.tolist() == other.tolist()


ONE = PackedPieces(*(np.array(values, np.int64) for values in ([0], [0], [5], [0, 1])))
ENTRY = EntryColumns(*(np.array([value], np.int64) for value in (0, 7, 3, 1, 2, 4, 1)))


def test_by_hand() -> None:
    spans, visual, starts = window_rows(ONE, ENTRY, np.array([0]))
    assert spans.tolist() == [[0, 7, 3, 5, 1]]
    assert visual.tolist() == [[2, 4]]
    assert starts.tolist() == [0, 1]
    positions, rows, documents = pack_amounts(ONE, ENTRY, 1)
    assert (positions.tolist(), rows.tolist(), documents.tolist()) == ([[5]], [[2]], [[1]])


@pytest.mark.parametrize(
    ("pieces", "entries", "order", "reason"),
    [
        (ONE._replace(entry=np.array([1])), ENTRY, [0], "a piece of an entry that is not there"),
        (ONE._replace(pack_starts=np.array([0, 2])), ENTRY, [0], "pack_starts do not go up to the pieces"),
        (ONE, ENTRY, [1], "a pack that is not there"),
        (ONE, ENTRY, [0, 0], "order must name every pack once"),
        (ONE._replace(length=np.array([], np.int64)), ENTRY, [0], "columns must have equal lengths"),
        (ONE, ENTRY._replace(pictures=np.array([1], np.int32)), [0], "contiguous, of int64"),
    ],
)
def test_what_is_outside_is_refused(pieces: PackedPieces, entries: EntryColumns, order: list[int], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        window_rows(pieces, entries, np.array(order, np.int64))


def test_a_source_that_is_not_there() -> None:
    with pytest.raises(ValueError, match="an entry of a source that is not there"):
        pack_amounts(ONE, ENTRY._replace(source=np.array([3])), 3)
