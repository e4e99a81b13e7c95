"""Rows that pyarrow wrote come back, from whichever row groups; what is no text is rejected by row."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_vlm.data.quarantine import Reason, Rejection
from megatron_vlm.data.records import Record, Text, Unit
from megatron_vlm.data.sources.parquet_text import ParquetText
from megatron_vlm.errors import DataError

ReadSource = Callable[..., list[Record | Rejection]]


def write(path: Path, rows: int = 1 << 20, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), path, row_group_size=rows)
    return path


def texts(outcomes: list[Record | Rejection]) -> list[str | Reason]:
    found: list[str | Reason] = []
    for outcome in outcomes:
        if isinstance(outcome, Rejection):
            found.append(outcome.reason)
        else:
            ((text,),) = outcome.documents
            assert isinstance(text, Text)
            found.append(text.text)
    return found


@settings(max_examples=30)
@given(
    texts_in=st.lists(st.text(st.characters(exclude_categories=["Cs"])) | st.none()),
    rows=st.integers(1, 5),
    target=st.integers(1, 999),
)
def test_rows_come_back_wherever_the_file_is_cut(
    tmp_path_factory: pytest.TempPathFactory, read_source: ReadSource, texts_in: list[str | None], rows: int, target: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "rows.parquet"
    write(path, rows, text=pa.array(texts_in, pa.string()), other=pa.array(range(len(texts_in))))
    outcomes = read_source(ParquetText(), path, target)
    expected = [Reason.MISSING_TEXT if t is None else t if t.strip() else Reason.EMPTY_TEXT for t in texts_in]
    assert texts(outcomes) == expected
    assert [outcome.offset for outcome in outcomes] == list(range(len(texts_in)))


def test_row_groups_are_spread_over_units(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", 10, text=[f"{n:0100}" for n in range(100)])
    size = path.stat().st_size
    units = ParquetText().units(str(path), size, size // 4)
    assert [(unit.start, unit.stop) for unit in units] == [(0, 3), (3, 6), (6, 9), (9, 10)]
    (record, *_) = ParquetText().read(units[1])
    assert (record.offset, record.number) == (30, 0)


@pytest.mark.parametrize(
    "kind", [pa.large_string(), pa.binary(), pa.dictionary(pa.int32(), pa.string()), pa.string_view()], ids=str
)
def test_every_kind_of_string_is_text(tmp_path: Path, read_source: ReadSource, kind: pa.DataType) -> None:
    column = pa.array(["é", "b", "é"]).cast(kind)
    assert texts(read_source(ParquetText(), write(tmp_path / "a.parquet", text=column))) == ["é", "b", "é"]


def test_columns_within_structs_and_ids(tmp_path: Path, read_source: ReadSource) -> None:
    column = pa.array([{"text": "a", "n": 1}, None, {"text": None, "n": 2}])
    path = write(tmp_path / "a.parquet", meta=column, id=["x", None, "z"])
    outcomes = read_source(ParquetText("meta.text"), path)
    assert texts(outcomes) == ["a", Reason.MISSING_TEXT, Reason.MISSING_TEXT]
    assert [outcome.key for outcome in outcomes] == ["x", "", "z"]
    flat = write(tmp_path / "b.parquet", **{"meta.text": ["flat"], "meta": pa.array([{"text": "deep"}]), "id": [7]})
    assert [(record.key, texts([record])) for record in read_source(ParquetText("meta.text"), flat)] == [("7", ["flat"])]


def test_what_is_no_text_is_rejected_by_row(tmp_path: Path, read_source: ReadSource) -> None:
    broken = pa.array([b"a", b"\xff", b"b", None]).cast(pa.binary())
    assert texts(read_source(ParquetText(), write(tmp_path / "a.parquet", text=broken))) == [
        "a",
        Reason.INVALID_UNICODE,
        "b",
        Reason.MISSING_TEXT,
    ]
    # a column that says it is UTF-8 and is not: Arrow does not look
    lying = pa.Array.from_buffers(pa.string(), 4, pa.array([b"a", b"\xff", b"b", None]).buffers())
    assert texts(read_source(ParquetText(), write(tmp_path / "b.parquet", text=lying))) == [
        "a",
        Reason.INVALID_UNICODE,
        "b",
        Reason.MISSING_TEXT,
    ]
    for column in ([1, 2], [["a"], ["b"]], [1.5, None], [{"text": "a"}, None]):
        outcomes = read_source(ParquetText(), write(tmp_path / "c.parquet", text=pa.array(column)))
        assert texts(outcomes) == [Reason.MISSING_TEXT] * 2


def test_a_column_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", body=["a"], meta=pa.array([{"n": 1}]))
    with pytest.raises(DataError, match=r"a\.parquet has no column 'text'; it has body, meta, meta\.n"):
        ParquetText().units(str(path), 1, 1)


def test_damage_is_reported_after_what_could_be_read(tmp_path: Path, read_source: ReadSource) -> None:
    path = write(tmp_path / "a.parquet", 100, text=[f"{n * n * 7919:x}" * 5 for n in range(1000)])
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"PAR1" * 3):
        path.write_bytes(content)
        assert texts(read_source(ParquetText(), path)) == [Reason.BROKEN_FILE]
    path.write_bytes(whole[100:])
    assert texts(read_source(ParquetText(), path)) == [Reason.BROKEN_FILE] * 10  # of each row group, for each is looked at
    start = pq.ParquetFile(pa.BufferReader(whole)).metadata.row_group(5).column(0).data_page_offset
    path.write_bytes(whole[: start - 40] + bytes(400) + whole[start + 360 :])
    outcomes = read_source(ParquetText(), path)
    lost = [outcome for outcome in outcomes if isinstance(outcome, Rejection)]
    assert {outcome.reason for outcome in lost} == {Reason.BROKEN_FILE}
    assert {5} <= {outcome.offset // 100 for outcome in lost} <= {4, 5, 6}
    assert {n for n in range(1000) if not 400 <= n < 700} <= {outcome.offset for outcome in outcomes}
    # a file that has changed since it was cut
    (tmp_path / "b.parquet").write_bytes(whole)
    (bad,) = ParquetText().read(Unit(str(tmp_path / "b.parquet"), 9, 12, 10))
    assert isinstance(bad, Rejection)
    assert bad.detail == "it has 10 row groups now, and had 12 or more"


@settings(max_examples=60)
@given(place=st.integers(0, 2**16), change=st.binary(min_size=1, max_size=8))
def test_changed_bytes_never_raise(
    tmp_path_factory: pytest.TempPathFactory, read_source: ReadSource, place: int, change: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "changed.parquet"
    content = bytearray(write(path, 2, text=["a", "bb", "ccc", None], id=[1, 2, 3, 4]).read_bytes())
    place %= len(content)
    content[place : place + len(change)] = change
    path.write_bytes(content)
    with contextlib.suppress(DataError):  # the change may have hit the column's name
        read_source(ParquetText(), path)


def test_an_empty_table_has_no_records(tmp_path: Path, read_source: ReadSource) -> None:
    assert read_source(ParquetText(), write(tmp_path / "a.parquet", text=pa.array([], pa.string()))) == []
