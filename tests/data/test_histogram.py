"""Bins of powers of two count every number once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_vlm.data import histogram as module
from megatron_vlm.data.histogram import dataset_histograms, histogram
from megatron_vlm.data.indexed_reader import IndexedReader
from megatron_vlm.data.indexed_writer import IndexedWriter


@given(st.lists(st.integers(0, 2**40), min_size=1))
def test_every_number_is_in_its_bin(values: list[int]) -> None:
    made = histogram("x", np.array(values))
    assert made is not None
    for least, most, count in made.bins:
        assert count == sum(least <= value <= most for value in values)
    assert sum(count for *_, count in made.bins) == len(values)
    assert all(one[1] + 1 == other[0] for one, other in zip(made.bins, made.bins[1:], strict=False))
    assert (made.least, made.most) == (min(values), max(values))
    assert made.bins[0][2]
    assert made.bins[-1][2]
    assert made.median == np.median(values)


def test_nothing_has_no_histogram() -> None:
    assert histogram("x", np.array([], np.int64)) is None


def test_bars() -> None:
    made = histogram("tokens", np.array([0, 1, 2, 3, 1000] + [2] * 996))
    assert made is not None
    lines = made.describe(width=8).split("\n")
    assert lines[0] == "tokens: 0 to 1,000, median 2, mean 3.0"
    assert lines[1].split() == ["0", "\u258f", "1", "0.1%"]
    assert lines[3].split() == ["2-3", "\u2588" * 8, "998", "99.7%"]
    assert lines[4].split() == ["4-7", "0", "0.0%"]
    assert lines[-1].split()[0] == "512-1,023"
    assert len({len(line) for line in lines[1:]}) == 1


def test_of_a_dataset(tmp_path: Path, make_picture: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    with IndexedWriter(tmp_path / "d", np.int32, multimodal=True) as writer:
        for number in range(10):
            writer.add_image(make_picture("PNG", 100, 20 + number) if number else b"broken")
            writer.add_text([1] * number)
            writer.end_document()
    reader = IndexedReader(tmp_path / "d")
    tokens, images, shorter, longer = dataset_histograms(reader, None)
    assert (tokens.most, images.most, shorter.least, shorter.most, longer.least) == (9, 1, 21, 29, 100)
    assert "(9 of 10 pictures)" in shorter.title
    facts = np.array([[5, 400], [1, 0]] * 10, np.int32)
    _, _, shorter, longer = dataset_histograms(reader, facts)
    assert (shorter.title, shorter.most, longer.least) == ("shorter side of a picture, in pixels", 5, 400)
    monkeypatch.setattr(module, "HEADERS_READ", 4)
    assert "of 10 pictures" in dataset_histograms(reader, None)[2].title
    assert shorter.as_json()["bins"] == [{"from": 4, "to": 7, "count": 10}]


def test_of_text_and_of_nothing(tmp_path: Path) -> None:
    with IndexedWriter(tmp_path / "d", np.uint16):
        pass
    assert dataset_histograms(IndexedReader(tmp_path / "d"), None) == []
    with IndexedWriter(tmp_path / "d", np.uint16) as writer:
        writer.add_text([1, 2])
        writer.end_document()
    (tokens,) = dataset_histograms(IndexedReader(tmp_path / "d"), None)
    assert tokens.bins == ((2, 3, 1),)
