"""Documents of expanded ids: placeholders, ends, refusals, and plain datasets that Megatron's own tool wrote."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

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
    assert documents.positions[0] == 9
    assert documents.first_ids_needed(0) == 9
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
