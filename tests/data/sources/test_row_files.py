"""Records out of files of each kind, sound and damaged; what is no such file is told before anything is read."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_vlm.data.quarantine import Reason, Rejection
from megatron_vlm.data.records import Unit
from megatron_vlm.data.sources.conversations import ConversationSource
from megatron_vlm.data.sources.interleaved import InterleavedSource
from megatron_vlm.data.sources.row_files import Row, read_rows, row_units
from megatron_vlm.errors import DataError


def rows_of(path: Path, target: int = 1 << 30) -> list[Row | Rejection]:
    return [row for unit in row_units(str(path), path.stat().st_size, target) for row in read_rows(unit)]


def numbers(rows: list[Row | Rejection]) -> list[int | Reason]:
    return [row.fields["n"] if isinstance(row, Row) else row.reason for row in rows]


@pytest.mark.parametrize(
    ("text", "units"),
    [
        ('[{"n": 0}, {"n": 1}]', 1),
        ('\ufeff\n  [{"n": 0},\n{"n": 1}]\n', 1),
        ('{"n": 0}\n{"n": 1}\n', 4),
        ('\n\n{"n": 0}\n\n{"n": 1}', 4),
    ],
)
def test_a_json_file_is_an_array_or_lines(text: str, units: int, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    assert len(row_units(str(path), path.stat().st_size, max(1, path.stat().st_size // 4))) == pytest.approx(units, abs=1)
    for target in (1, 5, 1000):
        assert numbers(rows_of(path, target)) == [0, 1]


def test_one_object_over_several_lines_is_no_list_of_records(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"data": [{"n": 0}]}, indent=2))
    with pytest.raises(DataError, match="one JSON object over several lines"):
        row_units(str(path), 10, 10)


def test_empty_files_hold_nothing(tmp_path: Path) -> None:
    for name in ("a.jsonl", "a.json"):
        (tmp_path / name).write_bytes(b"")
        assert rows_of(tmp_path / name) == []
    (tmp_path / "b.json").write_bytes(b" [ ] ")
    assert rows_of(tmp_path / "b.json") == []
    pq.write_table(pa.table({"n": pa.array([], pa.int64())}), tmp_path / "a.parquet")
    assert rows_of(tmp_path / "a.parquet") == []


def test_damage_comes_after_what_was_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    packed = gzip.compress("".join(f'{{"n": {n}}}\n' for n in range(30_000)).encode())
    path.write_bytes(packed[: len(packed) * 3 // 4])
    rows = rows_of(path)
    assert numbers(rows)[:-1] == list(range(len(rows) - 1))
    assert len(rows) > 1000
    rest = rows[-1]
    assert isinstance(rest, Rejection)
    assert (rest.reason, rest.number, rest.bytes_read) == (Reason.BROKEN_FILE, len(rows) - 1, path.stat().st_size)
    (tmp_path / "b.json.gz").write_bytes(b"no gzip")
    assert numbers(rows_of(tmp_path / "b.json.gz")) == [Reason.BROKEN_FILE]
    with pytest.raises(DataError, match=r"none\.jsonl cannot be opened: No such file"):
        list(read_rows(Unit(str(tmp_path / "none.jsonl"), 0, 9, 9)))


def test_one_broken_element_does_not_cost_the_next(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b'[{"n": 0}, {"n": tru}, {"n": "\xff"}, 5, {"n": 4}]')
    rows = rows_of(path)
    assert numbers(rows) == [0, Reason.BROKEN_JSON, Reason.INVALID_UNICODE, Reason.BROKEN_JSON, 4]
    assert [row.offset for row in rows] == [1, 11, 23, 35, 38]
    assert [row.number for row in rows] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("target", [1, 300, 1 << 30])
def test_parquet_in_runs_of_row_groups(target: int, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"n": range(500), "m": range(500)}), path, row_group_size=70)
    size = path.stat().st_size
    units = row_units(str(path), size, target)
    assert units[0].start == 0
    assert units[-1].stop == 8
    assert all(one.stop == other.start for one, other in zip(units, units[1:], strict=False))
    assert sum(unit.size for unit in units) == size
    assert len(units) == {1: 8, 1 << 30: 1}.get(target, len(units))
    rows = [row for unit in units for row in read_rows(unit, ["n", "absent"])]
    assert [row.fields for row in rows if isinstance(row, Row)] == [{"n": n} for n in range(500)]
    assert [row.offset for row in rows] == list(range(500))
    for unit in units:
        assert list(read_rows(unit))[-1].bytes_read == unit.size


def test_a_damaged_row_group_does_not_cost_the_others(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"n": range(300)}), path, row_group_size=100, use_dictionary=False, compression="zstd")
    column = pq.read_metadata(path).row_group(1).column(0)
    stored = bytearray(path.read_bytes())
    stored[column.data_page_offset : column.data_page_offset + column.total_compressed_size] = (
        b"\xff" * column.total_compressed_size
    )
    path.write_bytes(stored)
    found = numbers(rows_of(path))
    assert found == [*range(100), Reason.BROKEN_FILE, *range(200, 300)]


def test_text_that_is_no_utf8_costs_its_row(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    # written as bytes, read as text: what a writer that does not check leaves
    texts = pa.array([b"zero", b"\xff", b"two"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"t": texts}), path)
    found = [row.fields["t"] if isinstance(row, Row) else row.reason for row in rows_of(path)]
    assert found == ["zero", Reason.INVALID_UNICODE, "two"]


def test_a_value_that_python_does_not_have_costs_its_row(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"n": pa.array([0, 2**62, 2], pa.timestamp("us"))}), path)
    found = [isinstance(row, Row) or row.reason for row in rows_of(path)]
    assert found == [True, Reason.BROKEN_FILE, True]


@settings(max_examples=60)
@given(flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=6))
def test_no_damage_to_a_parquet_makes_the_reader_raise(
    flips: list[tuple[float, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "flipped.parquet"
    table = pa.table({"texts": [["one", None, "é"]] * 20, "images": [[None, b"x" * 50]] * 20, "url": ["u"] * 20})
    pq.write_table(table, path, row_group_size=7)
    stored = bytearray(path.read_bytes())
    for place, value in flips:
        stored[int(place * len(stored))] = value
    path.write_bytes(stored)
    try:
        units = row_units(str(path), len(stored), 1)
    except DataError:
        units = [Unit(str(path), 0, 3, 9)]
    for unit in units:
        for row in read_rows(unit, ["texts", "images"]):
            assert isinstance(row, (Row, Rejection))


def test_what_is_no_parquet_is_told_at_the_start(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    for content in (b"", b"no parquet" * 10, b"<html>"):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"a\.parquet is no parquet file: "):
            row_units(str(path), len(content), 10)
    assert numbers(list(read_rows(Unit(str(path), 0, 1, 9)))) == [Reason.BROKEN_FILE]
    # one that is, but for its end, is damage as any other
    path.write_bytes(b"PAR1" + b"x" * 50 + b"PAR1")
    assert numbers(rows_of(path)) == [Reason.BROKEN_FILE]


def test_a_parquet_without_any_of_the_columns_is_told_at_the_start(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"x": [1], "y": [2]}), path)
    assert len(row_units(str(path), 9, 9, ["z", "x"])) == 1
    with pytest.raises(DataError, match="none of the columns 'z', 'text'; it has 'x', 'y'"):
        row_units(str(path), 9, 9, ["z", "text"])
    for source in (ConversationSource(), InterleavedSource()):
        with pytest.raises(DataError, match="it has 'x', 'y'"):
            source.units(str(path), 9, 9)
