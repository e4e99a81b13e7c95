"""A .txt is a document, or what lies between separators."""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from megatron_vlm.data.quarantine import Reason, Rejection
from megatron_vlm.data.records import Record, Text
from megatron_vlm.data.sources.plain_text import BLANK_LINES, PlainText
from megatron_vlm.errors import ConfigError

ReadSource = Callable[..., list[Record | Rejection]]


def texts(outcomes: list[Record | Rejection]) -> list[str]:
    found = []
    for outcome in outcomes:
        assert isinstance(outcome, Record), outcome
        ((text,),) = outcome.documents
        assert isinstance(text, Text)
        found.append(text.text)
    return found


def test_a_file_is_a_document(tmp_path: Path, read_source: ReadSource) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\n\r\ntwo\n")
    assert texts(read_source(PlainText(), path)) == ["one\r\n\r\ntwo\n"]
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"three"))
    assert texts(read_source(PlainText(), tmp_path / "a.txt.gz")) == ["three"]


def test_separators(tmp_path: Path, read_source: ReadSource) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("a\r\nb\r\n \t\r\n\r\n\n é\n\n".encode())
    assert texts(read_source(PlainText(BLANK_LINES), path)) == ["a\nb", " é"]
    assert texts(read_source(PlainText("\n"), path)) == ["a", "b", " é"]
    path.write_bytes("one\n\nmore<|endoftext|> \n<|endoftext|><|endoftext|>twö".encode())
    records = read_source(PlainText("<|endoftext|>"), path)
    assert texts(records) == ["one\n\nmore", "twö"]
    assert [record.offset for record in records] == [0, 50]
    with pytest.raises(ConfigError, match="separator is empty"):
        PlainText("")


@given(text=st.text("a é\t\n", max_size=60), limit=st.sampled_from([5, 1000]))
def test_blank_lines_part_what_a_regular_expression_says(
    tmp_path_factory: pytest.TempPathFactory, read_source: ReadSource, text: str, limit: int
) -> None:
    # a line over the limit is not looked into, so that one of white space does not count as blank
    assume(all(line.strip() or len(line) <= limit for line in text.split("\n")))
    path = tmp_path_factory.getbasetemp() / "paragraphs.txt"
    path.write_text(text)
    expected = [part.strip("\n") for part in re.split(r"(?:^|\n)(?:[ \t]*(?:\n|$))+", text) if part.strip()]
    outcomes = read_source(PlainText(BLANK_LINES, limit), path)
    found = [None if isinstance(outcome, Rejection) else texts([outcome])[0] for outcome in outcomes]
    assert found == [part if len(part.encode()) <= limit else None for part in expected]
    content = text.encode()
    assert all(
        content[o.offset :].decode().startswith(part.split("\n")[0]) for o, part in zip(outcomes, expected, strict=True)
    )


@pytest.mark.parametrize("separator", [None, BLANK_LINES, "\n", "--"])
@given(content=st.binary(max_size=200))
def test_random_bytes_never_raise(
    tmp_path_factory: pytest.TempPathFactory, read_source: ReadSource, separator: str | None, content: bytes
) -> None:
    for name in ("random.txt", "random.txt.gz"):
        path = tmp_path_factory.getbasetemp() / name
        path.write_bytes(content)
        read_source(PlainText(separator, limit=50), path)


def test_what_is_wrong_is_told_apart(tmp_path: Path, read_source: ReadSource) -> None:
    path = tmp_path / "a.txt"
    for content, reason in (
        (b"", Reason.EMPTY_TEXT),
        (b" \n", Reason.EMPTY_TEXT),
        (b"\xff", Reason.INVALID_UNICODE),
        (b"x" * 101, Reason.TOO_MANY_TOKENS),
    ):
        path.write_bytes(content)
        (bad,) = read_source(PlainText(limit=100), path)
        assert isinstance(bad, Rejection)
        assert bad.reason is reason
    path.write_bytes(b"a\n\n\xff\n\n" + b"x" * 101 + b"\n\nb")
    for separator in (BLANK_LINES, "\n"):
        outcomes = read_source(PlainText(separator, limit=100), path)
        assert [o.reason for o in outcomes if isinstance(o, Rejection)] == [Reason.INVALID_UNICODE, Reason.TOO_MANY_TOKENS]
        assert texts([o for o in outcomes if isinstance(o, Record)]) == ["a", "b"]
    whole = gzip.compress(b"one\ntwo\nthree\n" * 1000)
    (tmp_path / "a.txt.gz").write_bytes(whole[: len(whole) // 2])
    *records, last = read_source(PlainText("\n"), tmp_path / "a.txt.gz")
    assert isinstance(last, Rejection)
    assert last.reason is Reason.BROKEN_FILE
    (only,) = read_source(PlainText(), tmp_path / "a.txt.gz")
    assert isinstance(only, Rejection)
    assert only.reason is Reason.BROKEN_FILE
