"""Merged datasets have the bytes that megatron-core's own builder gives, and all that was known of them."""

from __future__ import annotations

import gc
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_vlm.data import atomic_file, document_copy
from megatron_vlm.data.indexed_format import encode_image_record
from megatron_vlm.data.indexed_reader import IndexedReader
from megatron_vlm.data.indexed_writer import IndexedWriter
from megatron_vlm.data.merging import merge_datasets
from megatron_vlm.data.validation import validate_dataset
from megatron_vlm.errors import ConfigError, DataError

megatron = pytest.importorskip("megatron.core.datasets.indexed_dataset")

MakePicture = Callable[..., bytes]
Part = list[int] | bytes
TEXT = st.lists(st.integers(0, 255), max_size=6)
DOCUMENTS = st.lists(st.lists(st.one_of(TEXT, st.binary(max_size=9)), max_size=4), max_size=6)


@pytest.fixture(autouse=True, scope="module")
def quick_collection() -> Iterator[None]:
    """megatron-core collects garbage for each dataset that it adds: half a second where its modules are all looked at."""
    gc.freeze()
    yield
    gc.unfreeze()


def write(
    prefix: Path, documents: list[list[Part]], dtype: Any = np.int32, multimodal: bool = True, **metadata: Any
) -> Path:
    with IndexedWriter(prefix, dtype, multimodal) as writer:
        for document in documents:
            for part in document:
                writer.add_image(part) if isinstance(part, bytes) else writer.add_text(part)
            writer.end_document()
        if metadata:
            writer.finalize({"tool_version": "0", "kind": "image_text", **metadata})
    return prefix


def facts(prefix: Path) -> list[list[int]]:
    return np.load(f"{prefix}.sequences.npy").tolist()


@settings(max_examples=10)  # each waits for the disk several times
@given(st.lists(DOCUMENTS, min_size=1, max_size=3), st.sampled_from([np.uint8, np.uint16, np.int32, np.int64]))
def test_the_bytes_are_those_of_megatrons_own_builder(datasets: list[list[list[Part]]], dtype: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        prefixes = [write_theirs(Path(folder) / str(i), documents, dtype) for i, documents in enumerate(datasets)]
        theirs = megatron.IndexedDatasetBuilder(f"{folder}/theirs.bin", dtype=dtype, multimodal=True)
        for prefix in prefixes:
            theirs.add_index(str(prefix))
        theirs.finalize(f"{folder}/theirs.idx")
        merge_datasets(prefixes, Path(folder) / "ours")
        sequences = sum(len(document) for documents in datasets for document in documents)
        for suffix in (".bin", ".idx"):
            ours, expected = (Path(f"{folder}/{name}{suffix}").read_bytes() for name in ("ours", "theirs"))
            assert ours == expected, suffix
        assert IndexedReader(f"{folder}/ours").sequence_count == sequences
        assert validate_dataset(f"{folder}/ours").sound


def write_theirs(prefix: Path, documents: list[list[Part]], dtype: Any) -> Path:
    """With megatron-core's builder, which waits for no disk."""
    builder = megatron.IndexedDatasetBuilder(f"{prefix}.bin", dtype=dtype, multimodal=True)
    for document in documents:
        for part in document:
            elements = np.frombuffer(encode_image_record(part, dtype), dtype) if isinstance(part, bytes) else part
            builder.add_item(torch.from_numpy(np.array(elements, dtype)), int(isinstance(part, bytes)))
        builder.end_document()
    builder.finalize(f"{prefix}.idx")
    return prefix


@pytest.mark.parametrize("long", [1, 1 << 20])
def test_text_of_many_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, long: int) -> None:
    monkeypatch.setattr(document_copy, "_DOCUMENTS", 7)
    monkeypatch.setattr("megatron_vlm.data.byte_copy.LONG", long)
    rng = np.random.default_rng(0)
    parts: list[list[list[Part]]] = [
        [[rng.integers(0, 99, int(n)).tolist() for n in rng.integers(0, 40, int(rng.integers(0, 4)))] for _ in range(count)]
        for count in (40, 1, 25)
    ]
    prefixes = [write(tmp_path / str(i), part, np.uint16, multimodal=False) for i, part in enumerate(parts)]
    theirs = megatron.IndexedDatasetBuilder(str(tmp_path / "theirs.bin"), dtype=np.uint16)
    for prefix in prefixes:
        theirs.add_index(str(prefix))
    theirs.finalize(str(tmp_path / "theirs.idx"))
    counted: list[int] = []
    totals: list[int] = []
    known = merge_datasets(prefixes, tmp_path / "ours", advance=counted.append, total=totals.append)
    assert [sum(counted)] == totals == [2 * (tmp_path / "ours.bin").stat().st_size]
    for suffix in (".bin", ".idx"):
        assert (tmp_path / f"ours{suffix}").read_bytes() == (tmp_path / f"theirs{suffix}").read_bytes()
    assert known["documents"] == 66
    assert known["tokens"] == sum(len(text) for part in parts for document in part for text in document)
    assert not (tmp_path / "ours.sequences.npy").exists()


def test_what_was_known_is_known_of_both(tmp_path: Path) -> None:
    shared = {"tokenizer_fingerprint": "f" * 64, "vocab_size": 300, "image_token_id": 1}
    one = write(tmp_path / "one", [[[5], [6, 7]]], sources=[{"path": "a"}], quarantine={"x": 1, "y": 2}, n=1, **shared)
    two = write(tmp_path / "two", [[b"p", [8]], []], sources=[{"path": "b"}], quarantine={"y": 3}, n=2, **shared)
    (tmp_path / "one.quarantine.jsonl").write_text('{"key": "1"}\n')
    (tmp_path / "two.quarantine.jsonl").write_text('{"key": "2"}\n{"key": "3"}\n')
    known = merge_datasets([one, two], tmp_path / "sub" / "both")
    assert known == json.loads((tmp_path / "sub" / "both.json").read_text())
    assert {name: known[name] for name in shared} == shared
    assert "n" not in known  # they do not agree
    assert (known["documents"], known["tokens"], known["images"], known["kind"]) == (3, 4, 1, "image_text")
    assert known["quarantine"] == {"x": 1, "y": 5}
    assert known["sources"] == [{"path": "a"}, {"path": "b"}]
    assert [origin["documents"] for origin in known["merged_from"]] == [1, 2]
    lines = (tmp_path / "sub" / "both.quarantine.jsonl").read_text().splitlines()
    assert [json.loads(line)["key"] for line in lines] == ["1", "2", "3"]
    assert validate_dataset(tmp_path / "sub" / "both").checked == ["index", "counts", "checksums"]


def test_a_sidecar_that_is_missing_is_made(tmp_path: Path, make_picture: MakePicture) -> None:
    one = write(tmp_path / "one", [[[5], [6, 7]], [b"unknown", [8]]])
    np.save(f"{one}.sequences.npy", np.array([[1, 0], [0, 0], [9, 8], [1, 0]], np.int32))
    pictures: list[Part] = [make_picture(form, 31, 17) for form in ("PNG", "JPEG", "WEBP")]
    two = write(tmp_path / "two", [[*pictures, b"no picture", [5]]])
    merge_datasets([one, two], tmp_path / "both")
    assert facts(tmp_path / "both") == [[1, 0], [0, 0], [9, 8], [1, 0], *[[17, 31]] * 3, [0, 0], [1, 0]]
    assert validate_dataset(tmp_path / "both").sound
    merge_datasets([two], tmp_path / "both")
    assert not (tmp_path / "both.sequences.npy").exists()  # it was of the dataset before


def test_sequences_in_another_order_are_put_in_order(tmp_path: Path) -> None:
    """An index may be a choice of sequences of a .bin, in any order; the merged one is plain."""
    prefix = write(tmp_path / "d", [[[1, 2]], [[3, 4]], [[5, 6]]])
    content = bytearray((tmp_path / "d.idx").read_bytes())
    pointers = np.frombuffer(content, "<i8", 3, 34 + 12)
    pointers[:] = [16, 0, 8]
    (tmp_path / "d.idx").write_bytes(content)
    merge_datasets([prefix], tmp_path / "out")
    reader = IndexedReader(tmp_path / "out")
    assert [reader.tokens(i).tolist() for i in range(3)] == [[5, 6], [1, 2], [3, 4]]
    assert validate_dataset(tmp_path / "out").sound


def test_datasets_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    base = write(tmp_path / "base", [[[5]]], tokenizer_fingerprint="a" * 64)
    other = write(tmp_path / "other", [[[5]]], tokenizer_fingerprint="b" * 64)
    with pytest.raises(DataError, match="base was made with the tokenizer aaaa.* one token id means two texts"):
        merge_datasets([base, other], tmp_path / "out")
    assert "tokenizer_fingerprint" not in merge_datasets([base, other], tmp_path / "forced", force=True)
    wide = write(tmp_path / "wide", [[[5]]], np.int64)
    with pytest.raises(DataError, match="elements of int32 and .*wide of int64"):
        merge_datasets([base, wide], tmp_path / "out", force=True)
    text = write(tmp_path / "text", [[[5]]], multimodal=False)
    with pytest.raises(DataError, match="base is multimodal and .*text is text alone"):
        merge_datasets([text, base], tmp_path / "out", force=True)
    empty = write(tmp_path / "empty", [], multimodal=False)
    assert merge_datasets([empty, base], tmp_path / "with-empty")["documents"] == 1
    assert IndexedReader(tmp_path / "with-empty").multimodal
    with pytest.raises(ConfigError, match="nothing to merge"):
        merge_datasets([], tmp_path / "out")
    with pytest.raises(DataError, match="is read here and cannot be written"):
        merge_datasets([base, base], base)
    (tmp_path / "out.json").write_text("{}")
    with pytest.raises(DataError, match="not a dataset's metadata"):
        merge_datasets([base], tmp_path / "out")
    assert not list(tmp_path.glob("out.[!j]*"))
    assert IndexedReader(base).tokens(0).tolist() == [5]


def test_a_damaged_dataset_is_not_merged(tmp_path: Path) -> None:
    base = write(tmp_path / "base", [[[5]]])
    (tmp_path / "base.bin").write_bytes(b"12")
    with pytest.raises(DataError, match="truncated"):
        merge_datasets([base], tmp_path / "out")


@pytest.mark.parametrize("moment", ["hashing", "naming"])
def test_nothing_is_left_of_a_merge_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    base = write(tmp_path / "base", [[[5]]])
    before = {path.name for path in tmp_path.iterdir()}

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(*((document_copy, "file_digests") if moment == "hashing" else (atomic_file, "commit")), fail)
    with pytest.raises(DataError, match="out.bin cannot be written: .*No space left.*free some space"):
        merge_datasets([base], tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == before


def run_of(run: str | None, **counts: Any) -> dict[str, Any]:
    return {"quarantine": {}, "filtered": {}, **({} if run is None else {"run": run}), **counts}


def test_every_number_is_of_the_documents_together(tmp_path: Path) -> None:
    one = write(tmp_path / "one", [[[5], [6, 7]]], sequences=2, histograms={"tokens_a_document": {"2-3": 1}}, shard=0)
    two = write(tmp_path / "two", [[b"p", [8]], []], sequences=2, histograms={"tokens_a_document": {"2-3": 1}}, shard=0)
    known = merge_datasets([one, two], tmp_path / "both")
    assert known["sequences"] == 4
    tokens, images = {"0": 1, "1": 1, "2-3": 1}, {"0": 2, "1": 1}
    assert known["histograms"] == {"tokens_a_document": tokens, "images_a_document": images}  # no file says the sides
    assert "shard" not in known
    np.save(f"{two}.sequences.npy", np.array([[9, 17], [1, 0]], np.int32))
    known = merge_datasets([one, two], tmp_path / "both")
    assert known["histograms"]["longer_side_of_a_picture"] == {"16-31": 1}


def test_a_run_is_counted_once(tmp_path: Path) -> None:
    """Also where datasets that were merged already share one."""
    runs: dict[str, dict[str, Any]] = {
        "a": run_of("a", quarantine={"x": 3}, filtered={"small_image": 2}),
        "b": run_of("b", quarantine={"x": 1, "y": 1}),
        "c": run_of("c", filtered={"small_image": 5}),
    }
    names = ["a", "a", "b", "c"]
    prefixes = [write(tmp_path / f"d{i}", [[[i]]], **runs[name]) for i, name in enumerate(names)]
    for prefix, name in zip(prefixes, names, strict=True):
        Path(f"{prefix}.quarantine.jsonl").write_text(f'{{"run": "{name}"}}\n')
    merge_datasets(prefixes[:2], tmp_path / "aa")
    merge_datasets(prefixes[1:3], tmp_path / "ab")
    nested = merge_datasets([tmp_path / "aa", tmp_path / "ab", prefixes[3]], tmp_path / "nested")
    at_once = merge_datasets(prefixes, tmp_path / "all")
    for known in (nested, at_once):
        assert known["quarantine"] == {"x": 4, "y": 1}
        assert known["filtered"] == {"small_image": 7}
        assert known["runs"] == {name: {kind: runs[name][kind] for kind in ("quarantine", "filtered")} for name in "abc"}
    lines = (tmp_path / "all.quarantine.jsonl").read_text().splitlines()
    assert [json.loads(line)["run"] for line in lines] == ["a", "b", "c"]


def test_datasets_that_name_no_run_are_of_one_each(tmp_path: Path) -> None:
    prefixes = [write(tmp_path / str(i), [[[i]]], **run_of(None, filtered={"small_image": 2})) for i in range(2)]
    assert merge_datasets(prefixes, tmp_path / "both")["filtered"] == {"small_image": 4}


def test_a_source_is_named_once(tmp_path: Path) -> None:
    rows = [{"path": "a", "sha256": "f", "records": 9, "documents": number, "quarantined": 1} for number in (2, 3)]
    prefixes = [write(tmp_path / str(i), [[[i]]], sources=[row]) for i, row in enumerate(rows)]
    assert merge_datasets(prefixes, tmp_path / "both")["sources"] == [{**rows[0], "documents": 5}]


def test_a_name_that_is_no_utf8(tmp_path: Path) -> None:
    prefix = write(tmp_path / os.fsdecode(b"caf\xe9"), [[[5]]])
    known = merge_datasets([prefix], tmp_path / "out")
    assert known["merged_from"][0]["prefix"] == str(prefix)
    assert IndexedReader(tmp_path / "out").metadata == known


def test_metadata_that_cannot_be_written_keeps_the_dataset_that_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, _ = write(tmp_path / "base", [[[5]]]), write(tmp_path / "out", [[[6]]], quarantine={})
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr(document_copy, "describe_checksums", lambda _: object())
    with pytest.raises(TypeError):
        merge_datasets([base], tmp_path / "out")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_features_are_refused(tmp_path: Path) -> None:
    with IndexedWriter(tmp_path / "f", np.uint16) as writer:
        writer.finalize({"tool_version": "0", "kind": "features", "pictures": 0})
    with pytest.raises(DataError, match=r"f holds features of a dataset's pictures.*run megatron-vlm encode"):
        merge_datasets([tmp_path / "f"], tmp_path / "out")
    assert not list(tmp_path.glob("out*"))
