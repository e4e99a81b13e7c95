"""`assemble_spans` reads the documents of mapped datasets as the numpy path does, and nothing beside them."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron_vlm.config.data import TokenCounts
from megatron_vlm.config.steps import StepShape
from megatron_vlm.data import micro_batch_arrays
from megatron_vlm.data.documents import DocumentSource, Span
from megatron_vlm.data.indexed_reader import IndexedReader
from megatron_vlm.data.indexed_writer import IndexedWriter
from megatron_vlm.data.micro_batch import MicroBatchMaker
from megatron_vlm.data.micro_batch_arrays import ArrayMaker
from megatron_vlm.ops.assemble import BatchBuffers
from megatron_vlm.ops.assemble_spans import IndexedSource, assemble_spans
from megatron_vlm.ops.native import native_operators

TOKENS = TokenCounts(vocab_size=120, eod_id=0, image_token_id=1, pad_id=2)
LENGTH = 40

#: a document: sequences of text (their ids) and pictures (None), in reading order
PARTS = st.one_of(st.none(), st.lists(st.integers(3, 119), max_size=12))
DOCUMENTS = st.lists(st.lists(PARTS, max_size=5), min_size=1, max_size=6)


def write(prefix: Path, documents: list[list[list[int] | None]], dtype: type[np.generic]) -> None:
    with IndexedWriter(prefix, dtype, multimodal=True) as writer:
        for document in documents:
            for part in document:
                if part is None:
                    writer.add_image(b"a picture that nobody decodes")
                else:
                    writer.add_text(part)
            writer.end_document()


@st.composite
def cases(draw) -> tuple[list[tuple[list, type]], int, list[list[tuple[int, int, int, int]]]]:
    """Datasets, the rows of a picture, and packs of spans given in shares of what there is."""
    dtypes = st.sampled_from([np.uint8, np.int8, np.int16, np.uint16, np.int32, np.int64])
    datasets = draw(st.lists(st.tuples(DOCUMENTS, dtypes), min_size=1, max_size=3))
    spans = st.tuples(*[st.integers(0, 1000)] * 4)
    return datasets, draw(st.integers(1, 9)), draw(st.lists(st.lists(spans, max_size=4), max_size=3))


def spans_of(sources: list[DocumentSource], packs: list[list[tuple[int, int, int, int]]]) -> list[list[Span]]:
    made = []
    for pack in packs:
        room, spans = LENGTH, []
        for a, b, c, d in pack:
            number = a % len(sources)
            source = sources[number]
            usable = source.usable_documents()
            document = int(usable[b % len(usable)])
            positions = int(source.lengths(usable[b % len(usable)][None]).positions[0])
            start = c % positions
            length = 1 + d % (positions - start)
            if length <= room:
                spans.append(Span(number, document, start, length))
                room -= length
        made.append(spans)
    return made


@given(cases())
def test_it_is_the_numpy_path(case) -> None:
    datasets, image_tokens, packs = case
    with tempfile.TemporaryDirectory() as folder:
        sources = []
        for number, (documents, dtype) in enumerate(datasets):
            # a document that can be trained on is in each
            write(Path(folder) / str(number), [*documents, [[5, 6, 7]]], dtype)
            reader = IndexedReader(Path(folder) / str(number))
            sources.append(DocumentSource(str(number), reader, TOKENS, image_tokens))
        spans = spans_of(sources, packs)
        maker = ArrayMaker(sources, TOKENS, None)
        # a span that begins inside a picture holds only some of its rows, which no planner asks for: compare the arrays
        native = native_operators()
        assert native is not None
        shape = StepShape(0, LENGTH, 1, 1, 4, 1, image_tokens)
        found, pictures = maker._assemble(native, spans, shape, None)
        expected, places = maker._assemble_reference(spans, shape, None)
        for field in dataclasses.fields(found):
            one, other = getattr(found, field.name), getattr(expected, field.name)
            np.testing.assert_array_equal(one, other, err_msg=field.name)
        assert pictures == places


def test_the_fast_path_is_the_one_that_is_taken(tmp_path: Path, monkeypatch) -> None:
    write(tmp_path / "d", [[[5, 6, 7]]], np.int32)
    source = DocumentSource("d", IndexedReader(tmp_path / "d"), TOKENS, 2)
    calls = []
    real = micro_batch_arrays.assemble_spans
    monkeypatch.setattr(micro_batch_arrays, "assemble_spans", lambda *a, **k: calls.append(a) or real(*a, **k))
    made = MicroBatchMaker(micro_batch_arrays.ArrayMaker([source], TOKENS, None))(
        [[Span(0, 0, 0, 2)]], StepShape(0, LENGTH, 1, 1, 4, 1, 2)
    )
    assert made.tokens[0, :3].tolist() == [5, 6, TOKENS.pad_id]
    assert isinstance(made.tokens, torch.Tensor)
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("spans", "per_pack", "message"),
    [
        ([[1, 0, 0, 1]], [1], "source 1, document 0: there is no such source"),
        ([[-1, 0, 0, 1]], [1], "there is no such source"),
        ([[0, 2, 0, 1]], [1], "source 0, document 2: there is no such document"),
        ([[0, -1, 0, 1]], [1], "there is no such document"),
        ([[0, 0, -1, 1]], [1], "a span begins at 0 or later"),
        ([[0, 0, 0, 0]], [1], "has a position or more"),
        ([[0, 0, 0, 4]], [1], "positions 0 to 4 of 3 ids"),
        ([[0, 0, 2**62, 5]], [1], "of 3 ids"),
        ([[0, 0, 0, 2], [0, 0, 0, 2]], [2], "pack 0, segment 1: has 2 positions, but only 1 are left"),
        ([[0, 0, 0, 2]], [2], "does not add up"),
        ([[0, 0, 0, 2]], [], "does not add up"),
    ],
)
def test_spans_that_do_not_fit_are_refused(tmp_path: Path, spans, per_pack, message) -> None:
    write(tmp_path / "d", [[[5, 6, 7]], [[8, 9, 10]]], np.int32)
    with pytest.raises(ValueError, match=message):
        call(IndexedReader(tmp_path / "d"), spans, per_pack)


def call(reader: IndexedReader, spans: list[list[int]], per_pack: list[int], pointers=None) -> None:
    native = native_operators()
    assert native is not None
    pointers = reader.sequence_pointers if pointers is None else pointers
    index = (reader.sequence_lengths, pointers, reader.document_indices, reader.modes)
    source = IndexedSource(native, reader.data, reader.dtype, *index, 2)
    assemble_spans(
        native,
        [source],
        np.array(spans, np.int64),
        np.array(per_pack, np.int64),
        sequence_length=3,
        image_token_id=1,
        pad_id=2,
        eod_id=0,
        vocab_size=120,
        buffers=BatchBuffers.allocate(3 * len(per_pack)),
    )


@pytest.mark.parametrize("pointer", [-4, 16, 1 << 40])
def test_an_index_that_points_beside_its_data_is_refused(tmp_path: Path, pointer: int) -> None:
    """The reader has checked it when it opened the dataset; memory stays safe without that too."""
    write(tmp_path / "d", [[[5, 6, 7]], [[8, 9, 10]]], np.int32)
    with pytest.raises(ValueError, match="sequence 1 lies outside the data"):
        call(IndexedReader(tmp_path / "d"), [[0, 1, 0, 2]], [1], np.array([0, pointer], np.int64))


def test_a_mapped_file_lives_as_long_as_its_source(tmp_path: Path) -> None:
    write(tmp_path / "d", [[[5, 6, 7]]], np.int32)
    source = DocumentSource("d", IndexedReader(tmp_path / "d"), TOKENS, 2)
    indexed = source.indexed_at(2)
    native = native_operators()
    assert indexed is not None
    assert native is not None
    del source
    (tmp_path / "d.bin").unlink()
    batch, _, _ = assemble_spans(
        native,
        [indexed],
        np.array([[0, 0, 0, 2]], np.int64),
        np.array([1], np.int64),
        sequence_length=3,
        image_token_id=1,
        pad_id=2,
        eod_id=0,
        vocab_size=120,
    )
    assert batch.tokens.tolist() == [5, 6, 2]
