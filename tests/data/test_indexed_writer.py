"""A dataset is there whole or not at all, and says what it cannot hold."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from megatron_vlm.data import atomic_file
from megatron_vlm.data.indexed_reader import IndexedReader
from megatron_vlm.data.indexed_writer import IndexedWriter
from megatron_vlm.errors import DataError

METADATA = {"tool_version": "0", "kind": "text"}


def write(prefix: Path, ids: list[int]) -> None:
    with IndexedWriter(prefix, np.int32) as writer:
        writer.add_text(ids)
        writer.end_document()


def write_and_raise(prefix: Path, error: BaseException) -> None:
    with IndexedWriter(prefix) as writer:
        writer.add_text([9])
        writer.end_document()
        raise error


def test_leaving_by_an_exception_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        write_and_raise(tmp_path / "d", KeyboardInterrupt())
    assert list(tmp_path.iterdir()) == []


def test_nothing_has_its_final_name_while_writing(tmp_path: Path) -> None:
    with IndexedWriter(tmp_path / "d") as writer:
        writer.add_text([1, 2])
        writer.end_document()
        assert {path.suffix for path in tmp_path.iterdir()} == {".partial"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d.bin", "d.idx"]


def test_an_interrupted_rewrite_keeps_the_dataset_that_was_there(tmp_path: Path) -> None:
    write(tmp_path / "d", [1, 2, 3])
    with pytest.raises(RuntimeError):
        write_and_raise(tmp_path / "d", RuntimeError())
    assert IndexedReader(tmp_path / "d").tokens(0).tolist() == [1, 2, 3]


def test_a_failure_between_the_renames_leaves_no_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An old index must never describe new data."""
    write(tmp_path / "d", [1, 2, 3])

    own = atomic_file.commit

    def no_space(final: Path) -> None:
        if final.suffix == ".json":
            raise OSError("no space left on device")
        own(final)

    monkeypatch.setattr(atomic_file, "commit", no_space)
    writer = IndexedWriter(tmp_path / "d")
    writer.add_text([9, 9, 9])
    writer.end_document()
    with pytest.raises(OSError, match="no space"):
        writer.finalize(METADATA)
    writer.abort()
    assert not (tmp_path / "d.idx").exists()
    assert not list(tmp_path.glob("*.partial"))


def test_metadata_that_cannot_be_written_keeps_the_dataset_that_was_there(tmp_path: Path) -> None:
    write(tmp_path / "d", [1, 2, 3])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    writer = IndexedWriter(tmp_path / "d", facts=True)
    writer.add_text([9])
    writer.end_document()
    with pytest.raises(TypeError):
        writer.finalize({**METADATA, "settings": object()})
    writer.abort()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_metadata_may_name_a_file_that_is_no_utf8(tmp_path: Path) -> None:
    known = {**METADATA, "sources": [{"path": os.fsdecode(b"caf\xe9.jsonl")}]}
    with IndexedWriter(tmp_path / "d") as writer:
        writer.finalize(known)
    assert IndexedReader(tmp_path / "d").metadata.items() >= known.items()


def test_metadata_of_a_replaced_dataset_goes_with_it(tmp_path: Path) -> None:
    with IndexedWriter(tmp_path / "d") as writer:
        writer.add_text([1])
        writer.end_document()
        writer.finalize(METADATA)
    assert IndexedReader(tmp_path / "d").metadata.items() >= METADATA.items()
    write(tmp_path / "d", [2])
    assert IndexedReader(tmp_path / "d").metadata == {}


def test_someone_elses_json_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "d.json").write_text('{"text": "a corpus"}')
    with pytest.raises(DataError, match=r"d\.json exists and is not a dataset's metadata"):
        IndexedWriter(tmp_path / "d")
    assert json.loads((tmp_path / "d.json").read_text()) == {"text": "a corpus"}
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(("dtype", "ids"), [(np.uint16, [5, 65536]), (np.uint16, [-1]), (np.int32, [2**31])])
def test_an_id_that_does_not_fit_is_refused_instead_of_wrapped(tmp_path: Path, dtype: type, ids: list[int]) -> None:
    with pytest.raises(DataError, match="cannot hold"), IndexedWriter(tmp_path / "d", dtype) as writer:
        writer.add_text(ids)
    assert list(tmp_path.iterdir()) == []


def test_pictures_need_a_multimodal_dataset(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="multimodal=True"), IndexedWriter(tmp_path / "d") as writer:
        writer.add_image(b"x")


def test_sequences_outside_a_document_are_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match="1 sequences were added after"),
        IndexedWriter(tmp_path / "d") as writer,
    ):
        writer.add_text([1])
    assert list(tmp_path.iterdir()) == []


def test_a_finalized_writer_takes_no_more(tmp_path: Path) -> None:
    writer = IndexedWriter(tmp_path / "deep" / "d")
    writer.finalize()
    writer.finalize()
    with pytest.raises(ValueError, match="already finalized"):
        writer.add_text([1])
    assert IndexedReader(tmp_path / "deep" / "d").document_count == 0
