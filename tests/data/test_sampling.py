"""A sample is drawn by its seed alone, keeps the order, and is a dataset like any other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_vlm.data.indexed_reader import IndexedReader
from megatron_vlm.data.indexed_writer import IndexedWriter
from megatron_vlm.data.sampling import SampleSize, draw_documents, sample_dataset
from megatron_vlm.data.validation import validate_dataset
from megatron_vlm.errors import ConfigError

DOCUMENTS = 200


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Document n begins with the token n; every third has two texts, every fourth a picture before them."""
    prefix = tmp_path_factory.mktemp("data") / "d"
    rows = []
    with IndexedWriter(prefix, np.int32, multimodal=True) as writer:
        for number in range(DOCUMENTS):
            if number % 4 == 0:
                writer.add_image(b"picture %d" % number)
                rows.append((number, 7))
            writer.add_text([number] * (1 + number % 10))
            rows.append((number % 2, 0))
            if number % 3 == 0:
                writer.add_text([number])
                rows.append((1, 0))
            writer.end_document()
        writer.finalize({"tool_version": "0", "kind": "image_text", "quarantine": {"x": 3}, "vocab_size": 999})
    np.save(f"{prefix}.sequences.npy", np.array(rows, np.int32))
    return prefix


def drawn(prefix: Path) -> list[int]:
    """Which documents a sample is of, all of them compared with the dataset's."""
    reader = IndexedReader(prefix)
    numbers = []
    for document in range(reader.document_count):
        sequences = reader.document_sequences(document)
        texts = [reader.tokens(s) for s in sequences if not reader.modes[s]]
        number = int(texts[0][0])
        numbers.append(number)
        assert [text.tolist() for text in texts] == [[number] * (1 + number % 10)] + [[number]] * (number % 3 == 0)
        pictures = [reader.image_bytes(s) for s in sequences if reader.modes[s]]
        assert pictures == [b"picture %d" % number] * (number % 4 == 0)
    return numbers


def test_a_sample_is_part_of_the_dataset_in_its_order(dataset: Path, tmp_path: Path) -> None:
    known = sample_dataset(dataset, tmp_path / "s", SampleSize(documents=50), seed=3)
    numbers = drawn(tmp_path / "s")
    assert len(set(numbers)) == 50
    assert numbers == sorted(numbers)
    assert numbers == draw_documents(IndexedReader(dataset), SampleSize(documents=50), 3).tolist()
    assert known == json.loads((tmp_path / "s.json").read_text())
    assert (known["documents"], known["kind"], known["vocab_size"], known["quarantine"]) == (50, "image_text", 999, {})
    drawn_from = {name: known["sampled_from"][name] for name in ("documents", "drawn", "seed")}
    assert drawn_from == {"documents": DOCUMENTS, "drawn": {"documents": 50}, "seed": 3}
    assert validate_dataset(tmp_path / "s").checked == ["index", "sidecar", "counts", "checksums"]
    facts = np.load(tmp_path / "s.sequences.npy")
    reader = IndexedReader(tmp_path / "s")
    for row, (document, number) in zip(
        [reader.document_sequences(d)[0] for d in range(50)], enumerate(numbers), strict=True
    ):
        assert facts[row].tolist() == ([number, 7] if number % 4 == 0 else [number % 2, 0]), document


def test_every_number_is_of_the_sample(tmp_path: Path) -> None:
    rows = [{"path": name, "sha256": name, "records": 12, "quarantined": 2, "documents": 10} for name in "ab"]
    run = {"run": "r", "quarantine": {"x": 4}, "filtered": {"y": 1}, "sources": rows}
    with IndexedWriter(tmp_path / "d") as writer:
        for number in range(20):
            for _ in range(number):
                writer.add_text([number])
            writer.end_document()
        stale = {"sequences": 190, "histograms": {"tokens_a_document": {"8-15": 20}}, "shard": 3}
        writer.finalize({"tool_version": "0", "kind": "text", **stale, **run})
    reader = IndexedReader(tmp_path / "d")
    known = sample_dataset(tmp_path / "d", tmp_path / "s", SampleSize(documents=5))
    numbers = draw_documents(reader, SampleSize(documents=5), 0)
    assert known["sequences"] == IndexedReader(tmp_path / "s").sequence_count == numbers.sum()
    assert sum(known["histograms"]["tokens_a_document"].values()) == 5
    assert (known["quarantine"], known["filtered"]) == ({}, {})
    assert not {"run", "runs", "shard"} & known.keys()
    drawn = [int((numbers < 10).sum()), int((numbers >= 10).sum())]
    assert known["sources"] == [{**row, "documents": number} for row, number in zip(rows, drawn, strict=True)]


def test_seeds_and_sizes(dataset: Path, tmp_path: Path) -> None:
    contents = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        sample_dataset(dataset, tmp_path / name, SampleSize(fraction=0.25), seed=seed)
        suffixes = (".bin", ".idx", ".json", ".sequences.npy")
        contents.append([(tmp_path / f"{name}{suffix}").read_bytes() for suffix in suffixes])
    assert contents[0] == contents[1] != contents[2]
    sample_dataset(dataset, tmp_path / "all", SampleSize(fraction=1.0))
    for suffix in (".bin", ".idx", ".sequences.npy"):
        assert (tmp_path / f"all{suffix}").read_bytes() == Path(f"{dataset}{suffix}").read_bytes()


@given(st.integers(0, 2**63), st.integers(1, DOCUMENTS), st.integers(1, DOCUMENTS))
def test_a_larger_sample_holds_a_smaller_one(dataset: Path, seed: int, one: int, other: int) -> None:
    reader = IndexedReader(dataset)
    small, large = (set(draw_documents(reader, SampleSize(documents=n), seed).tolist()) for n in sorted((one, other)))
    assert small <= large
    assert (len(small), len(large)) == tuple(sorted((one, other)))


@given(st.integers(0, 99), st.integers(1, 2000))
def test_so_many_tokens_as_are_needed(dataset: Path, seed: int, tokens: int) -> None:
    reader = IndexedReader(dataset)
    lengths = reader.document_text_tokens()
    chosen = draw_documents(reader, SampleSize(tokens=tokens), seed)
    total = int(lengths.sum())
    assert lengths[chosen].sum() >= min(tokens, total)
    if tokens <= total and len(chosen) > 1:
        fewer = draw_documents(reader, SampleSize(documents=len(chosen) - 1), seed)
        assert lengths[fewer].sum() < tokens


def test_every_document_is_as_likely(dataset: Path) -> None:
    reader = IndexedReader(dataset)
    draws = np.zeros(DOCUMENTS)
    for seed in range(1000):
        draws[draw_documents(reader, SampleSize(documents=20), seed)] += 1
    # 100 each is expected; the standard deviation is 9.5
    assert draws.min() > 100 - 5 * 9.5
    assert draws.max() < 100 + 5 * 9.5


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ({}, "one of documents, tokens and fraction"),
        ({"documents": 1, "tokens": 1}, "one of"),
        ({"documents": 0}, "documents is 0; draw 1 or more"),
        ({"tokens": -1}, "tokens is -1"),
        ({"fraction": 0.0}, "fraction is 0.0"),
        ({"fraction": float("nan")}, "fraction is nan"),
        ({"fraction": 1.5}, "at most 1"),
    ],
)
def test_sizes_that_are_none(size: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SampleSize(**size)


def test_more_than_there_are(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has 200 documents, from which 201 cannot be drawn"):
        sample_dataset(dataset, tmp_path / "s", SampleSize(documents=201))


def test_a_tiny_fraction_is_one_document(dataset: Path) -> None:
    assert len(draw_documents(IndexedReader(dataset), SampleSize(fraction=1e-9), 0)) == 1
