"""Documents of a tar's .json and .txt members."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from megatron_vlm.data.quarantine import Reason, Rejection
from megatron_vlm.data.records import Record, Text
from megatron_vlm.data.sources.text_tar import TextTar

MakeTar = Callable[[str, Sequence[tuple[str, bytes]]], Path]
ReadSource = Callable[..., list[Record | Rejection]]


def test_each_json_or_txt_is_a_document(make_tar: MakeTar, read_source: ReadSource) -> None:
    path = make_tar(
        "a.tar",
        [
            ("d/1.json", b'{"meta": {"text": "one"}}'),
            ("d/2.txt", b"\xef\xbb\xbftwo\n"),
            ("d/3.json", b'{"meta": {"text": "three"}}'),
            ("d/3.txt", b"not this"),
            ("d/4.json", b'{"source": "web"}'),
            ("d/4.txt", b"four"),
            ("d/5.html", b"of another kind"),
        ],
    )
    packed = path.with_name("a.tar.gz")
    packed.write_bytes(gzip.compress(path.read_bytes()))
    for file in (path, packed):
        records = read_source(TextTar("meta.text"), file)
        assert [(record.key, record.documents) for record in records if isinstance(record, Record)] == [
            ("d/1", ((Text("one"),),)),
            ("d/2", ((Text("two\n"),),)),
            ("d/3", ((Text("three"),),)),
            ("d/4", ((Text("four"),),)),
        ]


BAD = [
    ([("1.json", b"{")], Reason.BROKEN_JSON),
    ([("1.json", b"5")], Reason.BROKEN_JSON),
    ([("1.json", b"{}")], Reason.MISSING_TEXT),
    ([("1.json", b'{"text": 5}'), ("1.txt", b"t")], Reason.MISSING_TEXT),
    ([("1.json", b'{"text": "\\ud800"}')], Reason.INVALID_UNICODE),
    ([("1.txt", b"\xff")], Reason.INVALID_UNICODE),
    ([("1.txt", b"\n")], Reason.EMPTY_TEXT),
    ([("1.txt", b"a"), ("1.txt", b"b")], Reason.DUPLICATE_MEMBER),
    ([("1.txt", b"a" * 101)], Reason.MISSING_TEXT),
    ([("../1.txt", b"a")], Reason.ESCAPING_PATH),
]


@pytest.mark.parametrize(("members", "reason"), BAD, ids=range(len(BAD)))
def test_a_bad_document_is_rejected_by_reason(
    make_tar: MakeTar, read_source: ReadSource, members: list[tuple[str, bytes]], reason: Reason
) -> None:
    bad, good = read_source(TextTar(limit=100), make_tar("a.tar", [*members, ("2.txt", b"t")]))
    assert isinstance(bad, Rejection)
    assert (bad.reason, bad.number, bad.offset) == (reason, 0, 0)
    assert isinstance(good, Record)


def test_a_truncated_tar_is_reported(make_tar: MakeTar, read_source: ReadSource) -> None:
    path = make_tar("a.tar", [("1.txt", b"one"), ("2.txt", b"two")])
    path.write_bytes(path.read_bytes()[:1600])
    first, last = read_source(TextTar(), path)
    assert isinstance(first, Record)
    assert isinstance(last, Rejection)
    assert (last.reason, last.number) == (Reason.BROKEN_FILE, 1)
