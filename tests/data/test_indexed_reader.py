"""What is written is what is read, damage is refused by name, and readers work in other processes."""

from __future__ import annotations

import os
import pickle
import struct
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_vlm.data import indexed_reader
from megatron_vlm.data.indexed_reader import IndexedReader
from megatron_vlm.data.indexed_writer import IndexedWriter
from megatron_vlm.errors import DataError

Part = list[int] | bytes
TEXT = st.lists(st.integers(0, 2**31 - 1), max_size=6)
DOCUMENTS = st.lists(st.lists(st.one_of(TEXT, st.binary(max_size=9)), max_size=4), max_size=6)


def write(prefix: Path, documents: list[list[Part]], multimodal: bool = True) -> None:
    with IndexedWriter(prefix, np.int32, multimodal) as writer:
        for document in documents:
            for part in document:
                if isinstance(part, bytes):
                    writer.add_image(part)
                else:
                    writer.add_text(part)
            writer.end_document()


def read(reader: IndexedReader) -> list[list[Part]]:
    return [
        [reader.image_bytes(s) if reader.modes[s] else reader.tokens(s).tolist() for s in reader.document_sequences(d)]
        for d in range(reader.document_count)
    ]


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    write(tmp_path / "d", [[b"picture", [1, 2, 3]], [], [[4], b"", b"odd", []]])
    return tmp_path / "d"


@given(DOCUMENTS)
def test_what_is_written_is_read(documents: list[list[Part]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / "d", documents)
        reader = IndexedReader(Path(folder) / "d")
        assert read(reader) == documents
        texts = [sum(len(part) for part in d if isinstance(part, list)) for d in documents]
        images = [sum(isinstance(part, bytes) for part in d) for d in documents]
        assert reader.document_text_tokens().tolist() == texts
        assert reader.document_images().tolist() == images
        assert reader.multimodal == any(documents)


@given(st.lists(st.lists(TEXT, max_size=3), max_size=5))
def test_text_alone_has_no_modes(documents: list[list[Part]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / "d", documents, multimodal=False)
        reader = IndexedReader(Path(folder) / "d")
        assert read(reader) == documents
        assert not reader.multimodal
        assert not reader.modes.any()
        assert reader.document_images().tolist() == [0] * len(documents)


def test_attributes(dataset: Path) -> None:
    reader = IndexedReader(dataset)
    assert reader.dtype == np.int32
    assert reader.sequence_lengths.tolist() == [3, 3, 1, 1, 2, 0]
    assert reader.sequence_pointers.tolist() == [0, 12, 24, 28, 32, 40]
    assert reader.document_indices.tolist() == [0, 2, 2, 6]
    assert reader.modes.tolist() == [1, 0, 0, 1, 1, 0]
    dtypes = [a.dtype for a in (reader.sequence_lengths, reader.sequence_pointers, reader.document_indices, reader.modes)]
    assert dtypes == [np.int32, np.int64, np.int64, np.int8]
    assert reader.document_sequences(1) == range(2, 2)
    assert reader.metadata == {}


def test_part_of_a_sequence(dataset: Path) -> None:
    reader = IndexedReader(dataset)
    assert reader.tokens(1, offset=1).tolist() == [2, 3]
    assert reader.tokens(1, offset=1, length=1).tolist() == [2]
    assert reader.tokens(1, offset=3).tolist() == []
    for offset, length in ((0, 4), (4, None), (-1, 1), (2, 2)):
        with pytest.raises(IndexError, match="has 3 tokens"):
            reader.tokens(1, offset, length)


def test_tokens_cannot_be_changed_through_a_reader(dataset: Path) -> None:
    with pytest.raises(ValueError, match="read-only"):
        IndexedReader(dataset).tokens(1)[0] = 5


def test_asking_for_the_wrong_thing(dataset: Path) -> None:
    reader = IndexedReader(dataset)
    with pytest.raises(ValueError, match="is an image"):
        reader.tokens(0)
    with pytest.raises(ValueError, match="is text"):
        reader.image_bytes(1)
    with pytest.raises(IndexError, match="documents 0 to 2, not 3"):
        reader.document_sequences(3)
    with pytest.raises(IndexError, match="documents 0 to 2, not -1"):
        reader.document_sequences(-1)
    with pytest.raises(IndexError, match="sequences 0 to 5, not 6"):
        reader.tokens(6)


def test_every_truncation_is_refused(dataset: Path) -> None:
    for path in (dataset.with_name("d.idx"), dataset.with_name("d.bin")):
        whole = path.read_bytes()
        for size in range(len(whole)):
            path.write_bytes(whole[:size])
            # One cut of the .idx takes exactly the modes away: then it is a sound text dataset to any reader.
            if path.suffix == ".idx" and size == len(whole) - 6:
                assert not IndexedReader(dataset).multimodal
                continue
            with pytest.raises(DataError, match=r"truncated|does not have the size"):
                IndexedReader(dataset)
        path.write_bytes(whole)
    IndexedReader(dataset)


def change(path: Path, offset: int, form: str, value: int | bytes) -> None:
    content = bytearray(path.read_bytes())
    struct.pack_into(form, content, offset, value)
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("offset", "form", "value", "message"),
    [
        (0, "9s", b"PK\3\4", "is not an indexed dataset"),
        (9, "<Q", 2, "format version 2"),
        (17, "<B", 6, "dtype code 6"),
        (18, "<Q", 2**60, "truncated"),
        (26, "<Q", 3, "does not have the size"),
        (34, "<i", -1, "negative length"),
        (34 + 4 * 6, "<q", 4096, "truncated"),
        (34 + 12 * 6, "<q", 1, "do not run from sequence 0 to 6"),
        (34 + 12 * 6 + 8, "<q", 5, "do not run from sequence 0 to 6"),
        (34 + 12 * 6 + 8 * 4, "<b", 2, "neither text"),
    ],
)
def test_damage_to_the_index_is_named(dataset: Path, offset: int, form: str, value: int | bytes, message: str) -> None:
    change(dataset.with_name("d.idx"), offset, form, value)
    with pytest.raises(DataError, match=message) as caught:
        IndexedReader(dataset)
    assert str(dataset) in str(caught.value)


def test_files_of_two_datasets_are_refused(dataset: Path) -> None:
    with open(dataset.with_name("d.bin"), "ab") as data:
        data.write(b"more")
    with pytest.raises(DataError, match="longer than its index says"):
        IndexedReader(dataset)


def test_a_damaged_image_record_is_named_when_it_is_read(dataset: Path) -> None:
    change(dataset.with_name("d.bin"), 0, "<i", 77)
    with pytest.raises(DataError, match=r"d\.bin: sequence 0 is no image record: its pad count is 77"):
        IndexedReader(dataset).image_bytes(0)


def test_a_missing_file_is_named(dataset: Path) -> None:
    dataset.with_name("d.bin").unlink()
    with pytest.raises(DataError, match=r"d\.bin does not exist"):
        IndexedReader(dataset)


def test_metadata_that_is_not_json_is_named(dataset: Path) -> None:
    dataset.with_name("d.json").write_text("{")
    with pytest.raises(DataError, match=r"d\.json is not JSON"):
        _ = IndexedReader(dataset).metadata


def test_fingerprint_tells_datasets_apart(dataset: Path, tmp_path: Path) -> None:
    write(tmp_path / "same", read(IndexedReader(dataset)))
    write(tmp_path / "other", [[b"picture", [1, 2, 3, 4]]])
    prints = [IndexedReader(prefix).fingerprint for prefix in (dataset, tmp_path / "same", tmp_path / "other")]
    assert prints[0] == prints[1] != prints[2]
    assert len(prints[0]) == 64


def test_a_pickled_reader_reads_the_same_from_another_folder(
    dataset: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    reader = IndexedReader("d")
    packed = pickle.dumps(reader)
    assert len(packed) < 1000  # a name, not the arrays
    monkeypatch.chdir("/")
    copy = pickle.loads(packed)
    assert read(copy) == read(IndexedReader(dataset))
    assert copy.fingerprint == reader.fingerprint


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_reads_on(dataset: Path) -> None:
    reader = IndexedReader(dataset)
    child = os.fork()
    if child == 0:
        os._exit(0 if reader.image_bytes(0) == b"picture" and reader.tokens(1).tolist() == [1, 2, 3] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert reader.tokens(2).tolist() == [4]


def test_a_large_index_is_verified_before_the_first_pass_over_it(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indexed_reader, "VERIFIED_ON_OPENING", 3)
    monkeypatch.setattr(indexed_reader, "_CHUNK", 2)
    assert IndexedReader(dataset).document_images().tolist() == [1, 0, 2]
    change(dataset.with_name("d.idx"), 34 + 4, "<i", -1)
    reader = IndexedReader(dataset)
    assert reader.tokens(2).tolist() == [4]
    with pytest.raises(DataError, match="sequence 1, -1 elements from byte 12 on, lies outside the 40 bytes"):
        reader.tokens(1)
    for call in (reader.document_images, reader.document_text_tokens, reader.verify):
        with pytest.raises(DataError, match="negative length"):
            call()


@pytest.mark.parametrize(
    ("offset", "form", "value", "message"),
    [
        (34, "<i", 2**31 - 1, "sequence 0, 2147483647 elements"),
        (34 + 4 * 6, "<q", 2**63 - 1, "lies outside"),
        (34 + 4 * 6, "<q", -4, "lies outside"),
        (34 + 12 * 6 + 8 * 4, "<b", 7, "neither text .0. nor image .1. but 7"),
        (34 + 12 * 6 + 8, "<q", 99, "document 0 has sequences 0 to 99 of 6"),
        (34 + 12 * 6 + 8, "<q", -9, "document 0 has sequences 0 to -9 of 6"),
    ],
)
def test_damage_that_nobody_looked_for_is_met_where_it_is_read(
    dataset: Path, offset: int, form: str, value: int, message: str
) -> None:
    change(dataset.with_name("d.idx"), offset, form, value)
    reader = IndexedReader(dataset, verify=False)
    with pytest.raises(DataError, match=message):
        [reader.image_bytes(sequence) for sequence in reader.document_sequences(0) if sequence == 0]
    with pytest.raises(DataError):
        reader.document_images()
    with pytest.raises(DataError):
        IndexedReader(dataset)


def test_a_pointer_so_large_that_its_end_wraps_around_is_seen(dataset: Path) -> None:
    change(dataset.with_name("d.idx"), 34 + 4 * 6, "<q", 2**63 - 4)
    with pytest.raises(DataError, match="truncated"):
        IndexedReader(dataset)


def test_pointers_between_elements(tmp_path: Path) -> None:
    write(tmp_path / "d", [[[1, 2]], [[3]]], multimodal=False)
    content = struct.pack("<iix", 1, 2) + struct.pack("<i", 3)
    (tmp_path / "d.bin").write_bytes(content)
    change(tmp_path / "d.idx", 34 + 2 * 4 + 8, "<q", 9)
    reader = IndexedReader(tmp_path / "d")
    assert reader.tokens(1).tolist() == [3]
    assert reader.tokens(1, 0, 0).tolist() == []
    assert reader.tokens(0, 1).tolist() == [2]


def test_where_a_byte_and_a_sequence_belong(dataset: Path) -> None:
    reader = IndexedReader(dataset)
    assert [reader.sequence_of_byte(byte) for byte in (0, 11, 12, 24, 39)] == [0, 0, 1, 2, 4]
    assert [reader.document_of_sequence(sequence) for sequence in range(6)] == [0, 0, 2, 2, 2, 2]
    start, stop = reader.image_place(0)
    assert reader.data[start:stop] == b"picture"
    with pytest.raises(ValueError, match="is text"):
        reader.image_place(1)
