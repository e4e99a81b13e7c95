"""Each file once, with the documents of it that are there, where that can be known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megatron_vlm.data.indexed_reader import IndexedReader
from megatron_vlm.data.indexed_writer import IndexedWriter
from megatron_vlm.data.source_rows import drawn_rows, merged_rows, source_rows


def row(path: str, documents: int | None, records: int = 9) -> dict[str, Any]:
    told = {"path": path, "sha256": "f" * 64, "records": records, "quarantined": 1}
    return told if documents is None else {**told, "documents": documents}


def test_what_is_no_row_is_passed_over() -> None:
    assert source_rows({"sources": [row("a", 1), 5]}) == [row("a", 1)]
    assert source_rows({"sources": {}}) == source_rows({}) == []


def test_a_file_is_named_once_with_the_documents_of_all() -> None:
    assert merged_rows([row("a", 2), row("b", 3), row("a", 5)]) == [row("a", 7), row("b", 3)]


def test_documents_that_one_does_not_know_are_unknown_of_all() -> None:
    assert merged_rows([row("a", 2), row("b", 3), row("a", None)]) == [row("a", None), row("b", 3)]


def test_readings_that_do_not_agree_stay_apart() -> None:
    rows = [row("a", 2, records=9), row("a", 2, records=4)]
    assert merged_rows(rows) == rows


def reader(prefix: Path, **metadata: Any) -> IndexedReader:
    """Of ten documents."""
    with IndexedWriter(prefix) as writer:
        for number in range(10):
            writer.add_text([number])
            writer.end_document()
        writer.finalize({"tool_version": "0", "kind": "text", **metadata})
    return IndexedReader(prefix)


def test_drawn_documents_are_counted_by_their_order(tmp_path: Path) -> None:
    rows = [row("a", 3), row("empty", 0), row("b", 6), row("c", 1)]
    dataset = reader(tmp_path / "d", sources=rows)
    drawn = drawn_rows(dataset, range(2, 5))
    assert drawn == [row("a", 1), row("empty", 0), row("b", 2), row("c", 0)]
    assert drawn_rows(dataset, range(10)) == rows


def test_where_the_order_is_not_known_no_documents_are_told(tmp_path: Path) -> None:
    merged = reader(tmp_path / "merged", sources=[row("a", 10)], merged_from=[])
    other = reader(tmp_path / "other", sources=[row("a", 10), row("b", 5)])
    assert drawn_rows(merged, range(4)) == [row("a", None)]
    assert drawn_rows(other, range(4)) == [row("a", None), row("b", None)]
    assert drawn_rows(reader(tmp_path / "none"), range(4)) == []
