"""Every kind of file gives the same documents wherever it is cut, and every kind of bad line its reason."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import pickle
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_vlm.data.quarantine import Reason, Rejection
from megatron_vlm.data.records import Record, Source, Text, Unit
from megatron_vlm.data.sources.json_lines import JsonLines

COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    ".jsonl": bytes,
    ".jsonl.gz": gzip.compress,
    ".jsonl.zst": zstandard.compress,
    ".ndjson.bz2": partial(bz2.compress, compresslevel=1),
    ".json.xz": partial(lzma.compress, preset=0),
}
TEXTS = st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip), max_size=5)


def write(folder: Path, content: bytes, suffix: str = ".jsonl") -> Path:
    path = folder / f"t{suffix}"
    path.write_bytes(COMPRESS.get(suffix, bytes)(content))
    return path


def read(source: Source, path: Path, target: int = 1 << 40) -> list[Record | Rejection]:
    size = path.stat().st_size
    units = source.units(str(path), size, target)
    assert sum(unit.size for unit in units) == size
    found = []
    for unit in units:
        outcomes = list(source.read(unit))
        assert [outcome.number for outcome in outcomes] == list(range(len(outcomes)))
        progress = [outcome.bytes_read for outcome in outcomes]
        assert progress == sorted(progress)
        assert all(0 <= read <= unit.size for read in progress)
        found += outcomes
    return found


def texts_of(outcomes: list[Record | Rejection]) -> list[str]:
    texts = []
    for record in outcomes:
        assert isinstance(record, Record), record
        ((part,),) = record.documents
        assert isinstance(part, Text)
        texts.append(part.text)
    return texts


@pytest.mark.parametrize("suffix", COMPRESS)
@settings(max_examples=25)  # of each suffix
@given(texts=TEXTS, ascii_only=st.booleans())
def test_texts_come_back(suffix: str, texts: list[str], ascii_only: bool) -> None:
    lines = [json.dumps({"id": f"n{n}", "text": text}, ensure_ascii=ascii_only) for n, text in enumerate(texts)]
    content = "".join(line + "\n" for line in lines).encode()
    with tempfile.TemporaryDirectory() as folder:
        records = read(JsonLines(), write(Path(folder), content, suffix))
    assert texts_of(records) == texts
    assert [record.key for record in records] == [f"n{n}" for n in range(len(texts))]
    assert [content[record.offset :].split(b"\n")[0].decode() for record in records] == lines


LINE = st.one_of(
    st.fixed_dictionaries({"text": st.text(st.characters(exclude_categories=["Cs"]))}).map(
        lambda record: json.dumps(record, ensure_ascii=False).encode()
    ),
    st.sampled_from([b"", b" ", b'{"text": "a\xe2\x80\xa8b\xc2\x85c"}', b'{"text": "\x0b"}', b"{", b"\xff", b"[1]"]),
)


@given(
    lines=st.lists(st.tuples(LINE, st.sampled_from([b"\n", b"\r\n"]))),
    last=LINE,
    target=st.integers(1, 200),
    limit=st.sampled_from([20, 1 << 20]),
)
def test_a_file_gives_the_same_records_wherever_it_is_cut(
    lines: list[tuple[bytes, bytes]], last: bytes, target: int, limit: int
) -> None:
    content = b"".join(line + end for line, end in lines) + last
    source = JsonLines(limit=limit)
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder), content)
        whole, cut = read(source, path), read(source, path, target)
    # a line that is too long is read as far as its unit needs, which its detail says
    assert [(o.offset, o.key, getattr(o, "documents", None) or o.reason) for o in whole] == [
        (o.offset, o.key, getattr(o, "documents", None) or o.reason) for o in cut
    ]
    if limit > 20:  # Python's own reader of lines agrees on how many there are
        assert len(whole) == sum(bool(line.strip(b" \t\r\n\v\f")) for line in content.split(b"\n"))


@pytest.mark.parametrize("suffix", [*COMPRESS, ".json"])
@settings(max_examples=25)  # of each suffix
@given(content=st.binary(max_size=300), start=st.integers(0, 300), length=st.integers(0, 300))
def test_random_bytes_never_raise(suffix: str, content: bytes, start: int, length: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"t{suffix}"
        for stored in (content, b"[" + content, COMPRESS.get(suffix, bytes)(content)):
            path.write_bytes(stored)
            read(JsonLines(), path, 50)
            list(JsonLines().read(Unit(str(path), start, start + length, length)))


BAD_LINES = [
    (b'{"text": "cut', Reason.BROKEN_JSON),
    (b"[1, 2]", Reason.BROKEN_JSON),
    (b'"text"', Reason.BROKEN_JSON),
    (b"null", Reason.BROKEN_JSON),
    (b"[" * 100_000, Reason.BROKEN_JSON),
    (b'{"text": "a"} {"text": "b"}', Reason.BROKEN_JSON),
    (b'{"text": "a", "n": ' + b"1" * 5000 + b"}", Reason.BROKEN_JSON),
    (b"\0\0\0\0", Reason.BROKEN_JSON),
    (b'{"text": "\xff"}', Reason.INVALID_UNICODE),
    (b'{"text": "\\ud800"}', Reason.INVALID_UNICODE),
    (b'{"text": "a", "title": "\xe9"}', Reason.INVALID_UNICODE),
    (b'{"body": "x"}', Reason.MISSING_TEXT),
    (b"{}", Reason.MISSING_TEXT),
    (b'{"text": null}', Reason.MISSING_TEXT),
    (b'{"text": 5}', Reason.MISSING_TEXT),
    (b'{"text": NaN}', Reason.MISSING_TEXT),
    (b'{"text": ["a"]}', Reason.MISSING_TEXT),
    (b'{"text": ""}', Reason.EMPTY_TEXT),
    (b'{"text": " \\n "}', Reason.EMPTY_TEXT),
]


@pytest.mark.parametrize(("line", "reason"), BAD_LINES, ids=range(len(BAD_LINES)))
def test_a_bad_line_is_rejected_and_the_next_one_read(tmp_path: Path, line: bytes, reason: Reason) -> None:
    path = write(tmp_path, b'{"text": "a"}\n\n' + line + b'\n{"text": "b"}')
    first, bad, last = read(JsonLines(), path)
    assert isinstance(bad, Rejection)
    assert (bad.reason, bad.offset, bad.number, bad.file) == (reason, 15, 1, str(path))
    assert bad.detail
    assert texts_of([first, last]) == ["a", "b"]


GOOD_LINES = [
    b'{"text": "a", "score": NaN}',  # as pandas and Python write it
    b'{"text": "a", "score": -Infinity}',
    b'{"text": "a", "title": "\\ud800"}',
    b'{"text": "a", "n": 123456789012345678901234567890}',
    b'\xef\xbb\xbf{"text": "a"}',
    b'  {"text": "a"}\t\r',
    b'{"text": "b", "text": "a"}',
]


@pytest.mark.parametrize("line", GOOD_LINES, ids=range(len(GOOD_LINES)))
def test_what_is_odd_beside_the_text_does_no_harm(tmp_path: Path, line: bytes) -> None:
    assert texts_of(read(JsonLines(), write(tmp_path, line + b"\n"))) == ["a"]


def test_keys_lead_into_objects_where_there_is_no_such_field(tmp_path: Path) -> None:
    path = write(tmp_path, b'{"meta": {"text": "a"}}\n{"meta.text": "b", "meta": {"text": "c"}}\n{"meta": "text"}')
    *sound, bad = read(JsonLines("meta.text"), path)
    assert texts_of(sound) == ["a", "b"]
    assert isinstance(bad, Rejection)
    assert (bad.reason, bad.detail) == (Reason.MISSING_TEXT, "no field 'meta.text'; it has 'meta'")


def test_a_field_that_is_null_is_not_said_to_be_missing(tmp_path: Path) -> None:
    def detail(key: str, line: bytes) -> str:
        (outcome,) = read(JsonLines(key), write(tmp_path, line))
        assert isinstance(outcome, Rejection)
        return outcome.detail

    assert detail("text", b'{"text": null, "id": 1}') == "field 'text' is null, not a string"
    assert detail("meta.text", b'{"meta": {"text": null}}') == "field 'meta.text' is null, not a string"
    assert detail("content", b'{"text": null, "id": 1}') == "no field 'content'; it has 'text' (null), 'id'"


def test_ids_are_keys(tmp_path: Path) -> None:
    path = write(tmp_path, b"".join(b'{"text": "a", "id": %s}\n' % i for i in (b'"x"', b"7", b"null", b"[1]", b"true")))
    assert [record.key for record in read(JsonLines(), path)] == ["x", "7", "", "", ""]


def test_a_line_over_the_limit_is_rejected_and_the_next_one_read(tmp_path: Path) -> None:
    content = b'{"text": "a"}\n' + json.dumps({"text": "x" * 1000}).encode() + b'\n{"text": "b"}\n'
    for suffix in (".jsonl", ".jsonl.gz"):
        first, bad, last = read(JsonLines(limit=100), write(tmp_path, content, suffix), 1 << 20)
        assert isinstance(bad, Rejection)
        assert (bad.reason, bad.offset) == (Reason.BROKEN_JSON, 14)
        assert bad.detail == "a line of 1,012 bytes or more; at most 100 are read"
        assert texts_of([first, last]) == ["a", "b"]


def test_an_array_is_read_like_lines(tmp_path: Path) -> None:
    values = [{"text": "é" * 9, "id": 1}, {"text": "b\u2028\n"}, 5, {"body": 1}, {"text": "c", "deep": [[{"x": "]"}]]}]
    for indent in (None, 2):
        content = b"\xef\xbb\xbf \n" + json.dumps(values, indent=indent, ensure_ascii=False).encode() + b"\n"
        for suffix in (".json", ".json.xz"):
            outcomes = read(JsonLines(), write(tmp_path, content, suffix), 10)
            reasons = [o.reason for o in outcomes if isinstance(o, Rejection)]
            assert reasons == [Reason.BROKEN_JSON, Reason.MISSING_TEXT]
            assert texts_of([o for o in outcomes if isinstance(o, Record)]) == ["é" * 9, "b\u2028\n", "c"]
            assert all(content[o.offset :].startswith((b"{", b"5")) for o in outcomes)


@pytest.mark.parametrize("end", [b"", b",", b"]]", b"] {}", b', {"text": "c"'])
def test_a_damaged_array_gives_what_precedes(tmp_path: Path, end: bytes) -> None:
    path = write(tmp_path, b'[{"text": "a"}, {"text": "b"}' + end, ".json")
    *records, last = read(JsonLines(), path)
    assert texts_of(records) == ["a", "b"]
    assert isinstance(last, Rejection)
    assert last.reason is Reason.BROKEN_FILE


def test_invalid_bytes_in_an_array_cost_one_record(tmp_path: Path) -> None:
    path = write(tmp_path, b'[{"text": "a"}, {"text": "\xff"}, {"text": "b"}]', ".json")
    first, bad, last = read(JsonLines(), path)
    assert isinstance(bad, Rejection)
    assert bad.reason is Reason.INVALID_UNICODE
    assert texts_of([first, last]) == ["a", "b"]


@pytest.mark.parametrize("suffix", [suffix for suffix in COMPRESS if suffix != ".jsonl"])
def test_a_truncated_file_is_reported_after_what_could_be_read(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path, b"".join(b'{"text": "%d"}\n' % (n * n) for n in range(20_000)), suffix)
    whole = path.read_bytes()
    for size in (len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        *records, last = read(JsonLines(), path)
        assert isinstance(last, Rejection)
        assert last.reason is Reason.BROKEN_FILE
        assert texts_of(records) == [str(n * n) for n in range(len(records))]
        assert len(records) <= 20_000


def test_a_store_without_ranges_is_read_from_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    fsspec = pytest.importorskip("fsspec")
    content = b"".join(b'{"text": "%d"}\n' % n for n in range(1000))
    with fsspec.open("memory://lines/a.jsonl", "wb") as stream:
        stream.write(content)
    for seekable in (True, False):
        monkeypatch.setattr("fsspec.implementations.memory.MemoryFile.seekable", lambda _, answer=seekable: answer)
        units = JsonLines().units("memory://lines/a.jsonl", len(content), 3000)
        assert len(units) > 3
        assert texts_of([record for unit in units for record in JsonLines().read(unit)]) == [str(n) for n in range(1000)]


def test_a_compressed_file_is_one_unit_and_a_plain_one_is_cut_evenly(tmp_path: Path) -> None:
    path = write(tmp_path, b"x" * 1000)
    units = JsonLines().units(str(path), 1000, 300)
    assert [(unit.start, unit.stop) for unit in units] == [(0, 333), (333, 666), (666, 1000)]
    assert JsonLines().units("t.jsonl.zst", 1000, 300) == [Unit("t.jsonl.zst", 0, 1, 1000)]
    assert pickle.loads(pickle.dumps(JsonLines("a"))) == JsonLines("a")
