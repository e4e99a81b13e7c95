"""megatron-core's own reader opens our files and our reader opens its files, with the same content."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron_vlm.data.indexed_format import IMAGE_MODE, TEXT_MODE, encode_image_record
from megatron_vlm.data.indexed_reader import IndexedReader
from megatron_vlm.data.indexed_writer import IndexedWriter

megatron = pytest.importorskip("megatron.core.datasets.indexed_dataset")

TEXT = st.lists(st.integers(0, 65535), max_size=8)
# Nothing at all in the .bin is left out: megatron-core cannot map an empty file.
MULTIMODAL = st.lists(st.lists(st.one_of(TEXT, st.binary(max_size=13)), max_size=4), max_size=5).filter(
    lambda documents: any(isinstance(part, bytes) or part for document in documents for part in document)
)
PLAIN = st.lists(st.lists(TEXT, max_size=3), max_size=5).filter(lambda documents: any(map(any, documents)))

Part = list[int] | bytes


@given(MULTIMODAL)
def test_megatron_opens_our_multimodal_files(documents: list[list[Part]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        prefix = Path(folder) / "ours"
        with IndexedWriter(prefix, np.int32, multimodal=True) as writer:
            for document in documents:
                for part in document:
                    writer.add_image(part) if isinstance(part, bytes) else writer.add_text(part)
                writer.end_document()
        theirs = megatron.IndexedDataset(str(prefix), multimodal=True)
        parts = [part for document in documents for part in document]
        assert len(theirs) == len(parts)
        assert np.diff(theirs.document_indices).tolist() == [len(document) for document in documents]
        for i, part in enumerate(parts):
            elements, mode = theirs[i]
            assert elements.dtype == np.int32
            if isinstance(part, bytes):
                assert mode == IMAGE_MODE
                # How Megatron's loaders unpack an image: without the first element and the pad bytes.
                payload = elements[1:].tobytes()
                assert payload[: len(payload) - int(elements[0])] == part
            else:
                assert mode == TEXT_MODE
                assert elements.tolist() == part


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
@given(documents=PLAIN)
def test_megatron_opens_our_text_files(dtype: type, documents: list[list[list[int]]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        prefix = Path(folder) / "ours"
        with IndexedWriter(prefix, dtype) as writer:
            for document in documents:
                for part in document:
                    writer.add_text(part)
                writer.end_document()
        theirs = megatron.IndexedDataset(str(prefix))
        assert [theirs[i].tolist() for i in range(len(theirs))] == [part for d in documents for part in d]
        assert theirs.index.dtype == dtype


@given(MULTIMODAL)
def test_we_open_megatrons_multimodal_files(documents: list[list[Part]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        prefix = str(Path(folder) / "theirs")
        builder = megatron.IndexedDatasetBuilder(megatron.get_bin_path(prefix), dtype=np.int32, multimodal=True)
        for document in documents:
            for part in document:
                if isinstance(part, bytes):
                    record = np.frombuffer(encode_image_record(part, np.int32), np.int32)
                    builder.add_item(torch.tensor(record), IMAGE_MODE)
                else:
                    builder.add_item(torch.tensor(part, dtype=torch.int32))
            builder.end_document()
        builder.finalize(megatron.get_idx_path(prefix))
        ours = IndexedReader(prefix)
        assert ours.multimodal
        assert [
            [ours.image_bytes(s) if ours.modes[s] else ours.tokens(s).tolist() for s in ours.document_sequences(d)]
            for d in range(ours.document_count)
        ] == documents


@given(PLAIN)
def test_we_open_megatrons_text_files(documents: list[list[list[int]]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        prefix = str(Path(folder) / "theirs")
        builder = megatron.IndexedDatasetBuilder(megatron.get_bin_path(prefix), dtype=np.uint16)
        for document in documents:
            flat = [token for part in document for token in part]
            builder.add_document(np.array(flat, dtype=np.int32), [len(part) for part in document])
        builder.finalize(megatron.get_idx_path(prefix))
        ours = IndexedReader(prefix)
        assert not ours.multimodal
        assert ours.dtype == np.uint16
        assert [
            [ours.tokens(s).tolist() for s in ours.document_sequences(d)] for d in range(ours.document_count)
        ] == documents


def test_both_writers_write_the_same_bytes(tmp_path: Path) -> None:
    documents: list[list[Part]] = [[b"seven b", [5, 6, 0]], [], [[1], b"", b"four", []]]
    theirs = megatron.IndexedDatasetBuilder(str(tmp_path / "theirs.bin"), dtype=np.int32, multimodal=True)
    with IndexedWriter(tmp_path / "ours", np.int32, multimodal=True) as ours:
        for document in documents:
            for part in document:
                if isinstance(part, bytes):
                    ours.add_image(part)
                    # Spelled out rather than by our own encoder, so that this checks it too.
                    pad = -len(part) % 4
                    words = np.frombuffer(part + b"\0" * pad, np.int32)
                    theirs.add_item(torch.tensor(np.insert(words, 0, pad)), 1)
                else:
                    ours.add_text(part)
                    theirs.add_item(torch.tensor(part, dtype=torch.int32))
            ours.end_document()
            theirs.end_document()
    theirs.finalize(str(tmp_path / "theirs.idx"))
    for suffix in (".bin", ".idx"):
        assert (tmp_path / f"ours{suffix}").read_bytes() == (tmp_path / f"theirs{suffix}").read_bytes()
