"""Lengths of documents: natively as in numpy, and as their ids have them."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_vlm.config.data import TokenCounts
from megatron_vlm.config.picture_rows import PictureRows
from megatron_vlm.data.document_lengths import document_lengths
from megatron_vlm.data.documents import DocumentSource
from megatron_vlm.data.indexed_reader import IndexedReader
from megatron_vlm.data.indexed_views import IndexedViews
from megatron_vlm.data.indexed_writer import IndexedWriter

ROWS = 3
#: a number is a text of so many ids, None a picture
documents = st.lists(st.lists(st.integers(1, 5) | st.none(), max_size=4), min_size=1, max_size=8)


def _dataset(folder: Path, given: list[list[int | None]]) -> IndexedReader:
    with IndexedWriter(folder / "data", np.int32, multimodal=True) as writer:
        for document in given:
            for part in document:
                if part is None:
                    writer.add_image(b"a picture")
                else:
                    writer.add_text([7] * part)
            writer.end_document()
    return IndexedReader(folder / "data")


@given(documents, st.data())
def test_native_and_numpy_agree_with_the_ids(given: list[list[int | None]], data: st.DataObject) -> None:
    if not any(given):
        given.append([1])  # a dataset without sequences has no modes
    with TemporaryDirectory() as folder:
        reader = _dataset(Path(folder), given)
        asked = np.array(data.draw(st.lists(st.integers(0, len(given) - 1), max_size=10)), np.int64)
        numpy = document_lengths(reader, asked, ROWS)
        view = IndexedViews(reader, None).at(ROWS)
        assert view is not None, "not built: run make"
        native = view.document_lengths(asked)
    for ours, theirs in zip(native, vars(numpy).values(), strict=True):
        assert ours.tolist() == theirs.tolist()
    for number, positions, pictures, end, rows, squares in zip(
        asked.tolist(), *(column.tolist() for column in native), strict=True
    ):
        parts = given[number]
        ids = "".join("p" * ROWS if part is None else "t" * part for part in parts)
        at_end = bool(parts) and parts[-1] is None  # an end of document follows
        assert (positions, pictures, end) == (len(ids) - 1 + at_end, parts.count(None), ids.rfind("p") + 1)
        assert (rows, squares) == (ROWS * parts.count(None), ROWS**2 * parts.count(None))


@given(st.lists(st.lists(st.tuples(st.integers(0, 300), st.integers(0, 300)), max_size=4), min_size=1, max_size=6))
def test_pictures_that_keep_their_aspect(given: list[list[tuple[int, int]]]) -> None:
    """A word, then pictures of these sizes: both ways of counting, and the ids that a document expands to."""
    given = [*given, [(20, 300)]]
    picture = PictureRows(25, 16, 2)
    with TemporaryDirectory() as folder:
        with IndexedWriter(Path(folder) / "data", multimodal=True, facts=True) as writer:
            for sizes in given:
                writer.add_text([7])
                for size in sizes:
                    writer.add_image(b"a picture", size)
                writer.end_document()
        source = DocumentSource("data", IndexedReader(Path(folder) / "data"), TokenCounts(100, 0, 1, 2), 9)
        known = source.lengths(np.arange(len(given)), picture)
        numpy = document_lengths(source.reader, np.arange(len(given)), picture, source.facts)
        expanded = [source.ids(number, 0, int(known.positions[number]) + 1, picture) for number in range(len(given))]
        totals = source.totals(picture)
    for ours, theirs in zip(vars(known).values(), vars(numpy).values(), strict=True):
        assert ours.tolist() == theirs.tolist()
    rows = [[picture.of(*size) for size in sizes] for sizes in given]
    assert known.rows.tolist() == [sum(each) for each in rows]
    assert known.squares.tolist() == [sum(n * n for n in each) for each in rows]
    for sizes, each, (ids, shown) in zip(given, rows, expanded, strict=True):
        assert ids.tolist() == [7] + [source.token_counts.image_token_id] * sum(each) + [0] * bool(sizes)
        assert len(shown) == len(sizes)
    assert totals.visual == sum(map(sum, rows))
    assert totals.positions == int(known.positions[known.positions > 0].sum())


def test_a_document_that_is_not_there(tmp_path: Path) -> None:
    view = IndexedViews(_dataset(tmp_path, [[1], [2]]), None).at(ROWS)
    assert view is not None
    for wrong in (-1, 2):
        with pytest.raises(ValueError, match=f"document {wrong}: there is no such document"):
            view.document_lengths(np.array([wrong], np.int64))
