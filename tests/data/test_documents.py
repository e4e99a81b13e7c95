"""Documents of expanded ids: placeholders, ends, refusals, and plain datasets that Megatron's own tool wrote."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from megatron_vlm.config.data import TokenCounts
from megatron_vlm.data.documents import DocumentSource
from megatron_vlm.data.indexed_reader import IndexedReader
from megatron_vlm.data.indexed_writer import IndexedWriter
from megatron_vlm.errors import DataError

TOKENS = TokenCounts(vocab_size=100, eod_id=0, image_token_id=1, pad_id=2)


def source(prefix: Path, fingerprint: str | None = None) -> DocumentSource:
    return DocumentSource("x", IndexedReader(prefix), TOKENS, 3, fingerprint)


def test_pictures_are_expanded_where_they_stand(tmp_path: Path) -> None:
    with IndexedWriter(tmp_path / "d", np.int32, multimodal=True) as writer:
        writer.add_text([10, 11])
        writer.add_image(b"a")
        writer.add_text([12])
        writer.add_image(b"b")
        writer.end_document()
    documents = source(tmp_path / "d")
    ids, pictures = documents.ids(0, 0, 10)
    assert ids.tolist() == [10, 11, 1, 1, 1, 12, 1, 1, 1, 0]  # the end after a last picture is ours
    assert pictures == [1, 3]
    known = documents.lengths(np.arange(1))
    assert (known.positions[0], known.pictures[0], known.picture_end[0]) == (9, 2, 9)
    assert documents.ids(0, 5, 3)[0].tolist() == [12, 1, 1]


def test_plain_files_of_megatrons_own_builder_are_documents(tmp_path: Path) -> None:
    import torch
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    builder = IndexedDatasetBuilder(str(tmp_path / "m.bin"), dtype=np.uint16)
    builder.add_document(torch.tensor([5, 6, 7, 0]), [4])
    builder.finalize(str(tmp_path / "m.idx"))
    documents = source(tmp_path / "m", fingerprint="any")  # no metadata: nothing to compare with
    assert documents.ids(0, 0, 4)[0].tolist() == [5, 6, 7, 0]
    assert not documents.has_pictures


@pytest.mark.parametrize(("ids", "message"), [([5, 1, 6], "image placeholder"), ([5, 200], "outside the vocabulary")])
def test_text_of_another_tokenizer_is_refused(ids: list[int], message: str, tmp_path: Path) -> None:
    with IndexedWriter(tmp_path / "d", np.uint16) as writer:
        writer.add_text(ids)
        writer.end_document()
    with pytest.raises(DataError, match=message):
        source(tmp_path / "d").ids(0, 0, len(ids))


def write(prefix: Path, *documents: list[int | list[int]], metadata: dict[str, object] | None = None) -> Path:
    """Documents of pictures (a number stands for one) and texts (lists of ids)."""
    with IndexedWriter(prefix, np.int32, multimodal=True) as writer:
        for document in documents:
            for part in document:
                if isinstance(part, int):
                    writer.add_image(bytes([part]))
                else:
                    writer.add_text(part)
            writer.end_document()
        writer.finalize({"tool_version": "1", "kind": "image-text", **metadata} if metadata else None)
    return prefix


def expanded(document: list[int | list[int]], image_tokens: int = 3) -> list[int]:
    """The same, spelled out another way."""
    ids = [i for part in document for i in ([TOKENS.image_token_id] * image_tokens if isinstance(part, int) else part)]
    return ids + [TOKENS.eod_id] * isinstance(document[-1], int)


@settings(max_examples=40)
@given(
    documents=st.lists(
        st.lists(st.integers(0, 255) | st.lists(st.integers(3, 99), min_size=1, max_size=5), min_size=1, max_size=5),
        min_size=1,
        max_size=4,
    )
)
def test_every_span_is_a_slice_of_the_whole(documents: list[list[int | list[int]]]) -> None:
    usable = [number for number, document in enumerate(documents) if len(expanded(document)) >= 2]
    assume(usable)
    with TemporaryDirectory() as folder:
        made = source(write(Path(folder) / "d", *documents))
        assert made.usable_documents().tolist() == usable
        known = made.lengths(np.arange(len(documents)))
        assert made.short_documents == len(documents) - len(usable)
        for number in usable:
            whole = expanded(documents[number])
            assert known.positions[number] == len(whole) - 1
            for start in range(len(whole)):
                for count in range(1, len(whole) - start + 1):
                    ids, pictures = made.ids(number, start, count)
                    assert ids.dtype == np.int32
                    assert ids.tolist() == whole[start : start + count]
                    # a picture belongs to the span in which it begins
                    begins = sum(b in range(start, start + count) for b in picture_places(documents[number]))
                    assert len(pictures) == begins
            ends = [place + 3 for place in picture_places(documents[number])]
            assert known.picture_end[number] == max(ends, default=0)
            assert known.pictures[number] == len(ends)
        totals = made.totals()
        assert (totals.documents, totals.positions) == (len(usable), int(known.positions[usable].sum()))
        assert totals.pictures == int(known.pictures[usable].sum())
        for rows in (1, 7):
            other = made.lengths(np.array(usable[::-1]), rows)
            assert other.positions.tolist() == [len(expanded(documents[number], rows)) - 1 for number in usable[::-1]]
            assert made.totals(rows).positions == int(other.positions.sum())


def picture_places(document: list[int | list[int]]) -> list[int]:
    at, places = 0, []
    for part in document:
        if isinstance(part, int):
            places.append(at)
        at += 3 if isinstance(part, int) else len(part)
    return places


def test_every_row_of_a_last_picture_is_an_input(tmp_path: Path) -> None:
    """Without an end after it, the picture's last row would only be a label, and a row short of its slots."""
    documents = source(write(tmp_path / "d", [[10], 7], [7, [10]], [7]))
    positions = documents.lengths(np.arange(3)).positions
    assert positions.tolist() == [4, 3, 3]
    for document in range(3):
        ids, pictures = documents.ids(document, 0, int(positions[document]) + 1)
        assert (ids[:-1] == TOKENS.image_token_id).sum() == 3 * len(pictures) == 3


def test_shares_and_means_are_of_usable_documents(tmp_path: Path) -> None:
    documents = source(write(tmp_path / "d", [[10]], [7, [10, 11, 12]], [[10] * 11]))
    assert documents.usable_documents().tolist() == [1, 2]
    assert documents.short_documents == 1
    assert documents.mean_positions() == (5 + 10) / 2
    assert documents.visual_share() == 3 / 15
    assert documents.visual_share(9) == 9 / 21
    assert documents.has_pictures


def test_a_dataset_without_any_usable_document_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"d holds no document of two or more tokens"):
        source(write(tmp_path / "d", [[10]], [[11]]))


@pytest.mark.parametrize("metadata", [{"tokenizer_fingerprint": "a" * 64}, {"tokenizer": {"fingerprint": "a" * 64}}])
def test_a_dataset_of_another_tokenizer_is_refused(metadata: dict[str, object], tmp_path: Path) -> None:
    prefix = write(tmp_path / "d", [[10, 11]], metadata=metadata)
    with pytest.raises(DataError, match=r"d was made with another tokenizer \(fingerprint a{12}, this run's is b{12}\)"):
        source(prefix, "b" * 64)
    assert source(prefix, "a" * 64).ids(0, 0, 2)[0].tolist() == [10, 11]
    assert source(prefix).short_documents == 0, "nothing to compare with"


def test_the_id_that_is_outside_is_the_one_named(tmp_path: Path) -> None:
    documents = source(write(tmp_path / "d", [[5, -7, 6]], [[5, 6]]))
    with pytest.raises(DataError, match=r"d, document 0: token id -7 is outside the vocabulary of 100"):
        documents.ids(0, 0, 3)
    assert documents.ids(0, 2, 1)[0].tolist() == [6], "only what is read is checked"
    assert documents.ids(1, 0, 2)[0].tolist() == [5, 6]
