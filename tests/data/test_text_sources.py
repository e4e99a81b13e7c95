"""Every kind of file gives the same documents, and every kind of bad line its reason."""

from __future__ import annotations

import gzip
import json
import tempfile
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from megatron_vlm.data.compressed_lines import read_lines
from megatron_vlm.data.quarantine import Reason, Rejection
from megatron_vlm.data.text_sources import TextRecord, read_text_file

SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst")
TEXTS = st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip), max_size=5)


def write(path: Path, content: bytes) -> Path:
    if path.suffix == ".gz":
        content = gzip.compress(content)
    elif path.suffix == ".zst":
        content = zstandard.compress(content)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("suffix", SUFFIXES)
@given(texts=TEXTS)
def test_texts_come_back(suffix: str, texts: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        content = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
        path = write(Path(folder) / f"t{suffix}", content)
        records = [record for record in read_text_file(path) if isinstance(record, TextRecord)]
        assert [record.text for record in records] == texts
        assert [record.key for record in records] == [f"line {n}" for n in range(1, len(texts) + 1)]
        assert all(0 < record.position <= path.stat().st_size for record in records)


BAD_LINES = [
    (b'{"text": "cut', Reason.BROKEN_JSON),
    (b"[1, 2]", Reason.BROKEN_JSON),
    (b"[" * 100_000, Reason.BROKEN_JSON),
    (b'{"text": "\xff"}', Reason.INVALID_UNICODE),
    (b'{"text": "\\ud800"}', Reason.INVALID_UNICODE),
    (b'{"body": "x"}', Reason.MISSING_TEXT),
    (b'{"text": null}', Reason.MISSING_TEXT),
    (b'{"text": 5}', Reason.MISSING_TEXT),
    (b'{"text": " \\n "}', Reason.EMPTY_TEXT),
]


@pytest.mark.parametrize(("line", "reason"), BAD_LINES, ids=range(len(BAD_LINES)))
def test_a_bad_line_is_rejected_and_the_next_one_read(tmp_path: Path, line: bytes, reason: Reason) -> None:
    path = write(tmp_path / "t.jsonl", b'{"text": "a"}\n\n' + line + b'\n{"text": "b"}')
    first, bad, last = read_text_file(path)
    assert isinstance(bad, Rejection)
    assert (bad.reason, bad.key, bad.file) == (reason, "line 3", path)
    assert bad.detail
    assert isinstance(first, TextRecord)
    assert isinstance(last, TextRecord)
    assert (first.text, last.text, last.key) == ("a", "b", "line 4")


def test_the_key_is_the_one_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", b'{"text": "a", "body": "b"}')
    (record,) = read_text_file(path, key="body")
    assert isinstance(record, TextRecord)
    assert record.text == "b"


def test_several_frames_are_one_file(tmp_path: Path) -> None:
    """Parallel compressors and `cat` make such files; the library reads only their first frame by default."""
    for suffix, compress in ((".gz", gzip.compress), (".zst", zstandard.compress)):
        path = tmp_path / f"t{suffix}"
        path.write_bytes(compress(b"one\ntw") + compress(b"") + compress(b"o\nthree"))
        assert [line for _, line in read_lines(path)] == [b"one", b"two", b"three"]


@pytest.mark.parametrize("suffix", SUFFIXES[1:])
def test_a_truncated_file_is_reported_after_what_could_be_read(tmp_path: Path, suffix: str) -> None:
    lines = b"".join(b'{"text": "%d"}\n' % n for n in range(20_000))
    path = write(tmp_path / f"t{suffix}", lines)
    whole = path.read_bytes()
    for size in (len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        *records, last = read_text_file(path)
        assert isinstance(last, Rejection)
        assert last.reason is Reason.BROKEN_FILE
        assert [r.text for r in records if isinstance(r, TextRecord)] == [str(n) for n in range(len(records))]
        assert len(records) <= 20_000


@pytest.mark.parametrize("suffix", SUFFIXES[1:])
def test_a_file_that_is_not_what_its_name_says_is_reported(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"t{suffix}"
    path.write_bytes(b'{"text": "plain"}\n')
    (only,) = read_text_file(path)
    assert isinstance(only, Rejection)
    assert only.reason is Reason.BROKEN_FILE
