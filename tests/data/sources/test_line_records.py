"""However a file is cut, each line comes once, in order, from where it is."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from megatron_vlm.data.quarantine import Reason
from megatron_vlm.data.records import Unit
from megatron_vlm.data.sources import line_records
from megatron_vlm.data.sources.defect import Defect
from megatron_vlm.data.sources.line_records import DAMAGE, Line, line_units, parse_object, read_lines


def lines_of(path: Path, target: int) -> list[Line]:
    return [line for unit in line_units(str(path), path.stat().st_size, target) for line in read_lines(unit)]


@given(
    lines=st.lists(st.binary(max_size=9).filter(lambda b: b"\n" not in b)), ended=st.booleans(), target=st.integers(1, 60)
)
def test_cuts_change_nothing(lines: list[bytes], ended: bool, target: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "cut.jsonl"
    text = b"\n".join(lines) + b"\n" * ended
    path.write_bytes(text)
    units = line_units(str(path), len(text), target)
    assert units[0].start == 0
    assert units[-1].stop == len(text)
    assert all(a.stop == b.start for a, b in zip(units, units[1:], strict=False))
    assert sum(unit.size for unit in units) == len(text)
    found = [(line.content, line.offset) for line in lines_of(path, target)]
    assert found == [(line.content, line.offset) for line in lines_of(path, len(text) + 1)]
    expected, at = [], 0
    for line in text.split(b"\n"):
        content = (line.removeprefix(b"\xef\xbb\xbf") if at == 0 else line).rstrip(b"\r\n")
        if content and not content.isspace():
            expected.append((content, at))
        at += len(line) + 1
    assert found == expected


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_compressed_files_are_one_unit_with_offsets_of_the_text(suffix: str, tmp_path: Path) -> None:
    text = b"\xef\xbb\xbf[1]\n\n[2]\r\n[3]"
    path = tmp_path / ("a.jsonl" + suffix)
    path.write_bytes(gzip.compress(text) if suffix == ".gz" else zstandard.compress(text))
    size = path.stat().st_size
    assert line_units(str(path), size, 1) == [Unit(str(path), 0, 1, size)]
    lines = lines_of(path, 1)
    assert [(line.content, line.offset) for line in lines] == [(b"[1]", 0), (b"[2]", 8), (b"[3]", 13)]
    assert lines[-1].bytes_read == size


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_truncated_compression_is_damage(suffix: str, tmp_path: Path) -> None:
    text = b"".join(b"[%d]\n" % number for number in range(5000))
    path = tmp_path / ("a.jsonl" + suffix)
    packed = gzip.compress(text) if suffix == ".gz" else zstandard.compress(text)
    path.write_bytes(packed[: len(packed) // 2])
    with pytest.raises(DAMAGE):
        lines_of(path, 1)


def test_an_endless_line_is_passed_over_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line_records, "LONGEST_LINE", 10)
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"0123456789\n" + b"x" * 500 + b"\nshort")
    for target in (1000, 50, 7):
        found = [(line.content, line.offset) for line in lines_of(path, target)]
        assert found == [(b"0123456789", 0), (None, 11), (b"short", 512)]


def test_what_fsspec_opens_is_read_in_units() -> None:
    import fsspec

    url = "memory://line-records/a.jsonl"
    with fsspec.open(url, "wb") as stream:
        stream.write(b"[1]\n[2]\n[3]\n")
    contents = [line.content for unit in line_units(url, 12, 4) for line in read_lines(unit)]
    assert contents == [b"[1]", b"[2]", b"[3]"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"{", Reason.BROKEN_JSON),
        (b"", Reason.BROKEN_JSON),
        (b"[1]", Reason.BROKEN_JSON),
        (b'{"a": "\xff"}', Reason.INVALID_UNICODE),
        (b'{"a": ' + b"[" * 100_000, Reason.BROKEN_JSON),
        (b'{"a": ' + b"1" * 10_000 + b"}", Reason.BROKEN_JSON),
    ],
)
def test_broken_objects_are_told_apart(text: bytes, reason: Reason) -> None:
    with pytest.raises(Defect) as caught:
        parse_object(text)
    assert caught.value.reason is reason


def test_what_python_reads_is_read() -> None:
    assert parse_object(b'{"a": "\\ud800", "b": Infinity}') == {"a": "\ud800", "b": float("inf")}
