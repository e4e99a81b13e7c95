"""Totals from the index against the documents that training sees, and against counting by hand."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_vlm.config.data import TokenCounts
from megatron_vlm.data import source_totals
from megatron_vlm.data.documents import DocumentSource
from megatron_vlm.data.indexed_reader import IndexedReader
from megatron_vlm.data.indexed_writer import IndexedWriter
from megatron_vlm.data.source_totals import SourceTotals, count_dataset
from megatron_vlm.errors import DataError

TOKENS = TokenCounts(vocab_size=100, eod_id=0, image_token_id=1, pad_id=2)
#: a document: texts by their number of ids, None for a picture
DOCUMENT = st.lists(st.none() | st.integers(0, 5), max_size=5)


def write(prefix: Path, documents: list[list[int | None]]) -> IndexedReader:
    with IndexedWriter(prefix, np.uint16, multimodal=True) as writer:
        for document in documents:
            for part in document:
                if part is None:
                    writer.add_image(b"a")
                else:
                    writer.add_text([7] * part)
            writer.end_document()
    return IndexedReader(prefix)


def test_by_hand(tmp_path: Path) -> None:
    reader = write(tmp_path / "d", [[3], [1], [], [None, 2], [2, None], [None]])
    # 3 ids: 2 positions; 1 id and none: left out; 4 + 2 ids: 5; 2 + 4 ids and the end after a picture: 6; 4 and the end: 4
    assert count_dataset(reader).totals(4) == SourceTotals(documents=4, positions=2 + 5 + 6 + 4, pictures=3, visual=12)


@given(documents=st.lists(DOCUMENT, min_size=1, max_size=12), image_tokens=st.integers(2, 5), chunk=st.integers(1, 5))
def test_it_counts_what_training_sees(documents: list[list[int | None]], image_tokens: int, chunk: int) -> None:
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(source_totals, "_CHUNK", chunk)
        reader = write(Path(folder) / "d", documents)
        totals = count_dataset(reader).totals(image_tokens)
        try:
            source = DocumentSource("x", reader, TOKENS, image_tokens)
        except DataError:
            assert totals == SourceTotals(0, 0, 0, 0)
            return
        usable = source.usable_documents()
        known = source.lengths(usable)
        assert totals.documents == len(usable)
        assert totals.positions == known.positions.sum()
        assert totals.pictures == known.pictures.sum()


def test_plain_text(tmp_path: Path) -> None:
    with IndexedWriter(tmp_path / "t", np.uint16) as writer:
        for count in (5, 1, 2):
            writer.add_text([7] * count)
            writer.end_document()
    assert count_dataset(IndexedReader(tmp_path / "t")).totals(4) == SourceTotals(2, 5, 0, 0)
