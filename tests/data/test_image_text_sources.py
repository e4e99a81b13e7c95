"""Members become records whatever their order, and what is wrong with a record is told apart."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from megatron_vlm.data.image_text_sources import PictureRecord, read_image_text_tar
from megatron_vlm.data.quarantine import Reason, Rejection

MakeTar = Callable[[str, Sequence[tuple[str, bytes]]], Path]


def description(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


def only(path: Path, caption_key: str | None = None) -> PictureRecord | Rejection:
    (record,) = read_image_text_tar(path, caption_key)
    return record


def test_members_are_grouped_by_key_in_any_order(make_tar: MakeTar) -> None:
    path = make_tar(
        "a.tar",
        [
            ("x/1.txt", b" one \n"),
            ("x/1.json", description(status="success", caption="not this")),
            ("x/1.jpg", b"J"),
            ("x/2.PNG", b"P"),
            ("x/2.txt", b"two"),
            ("x/._2.jpg", b"what macOS adds"),
            ("x/2.npz", b"an embedding"),
            ("y/2.json", description(caption="three")),
            ("y/2.webp", b"W"),
            ("readme", b"no suffix"),
        ],
    )
    records = list(read_image_text_tar(path))
    assert all(isinstance(record, PictureRecord) for record in records)
    assert [(r.key, r.image, r.captions) for r in records if isinstance(r, PictureRecord)] == [
        ("x/1", b"J", ("one",)),
        ("x/2", b"P", ("two",)),
        ("y/2", b"W", ("three",)),
    ]
    assert [record.position for record in records] == sorted(record.position for record in records)
    assert records[-1].position <= path.stat().st_size


def test_a_field_may_hold_several_captions(make_tar: MakeTar) -> None:
    members = [("1.png", b"P"), ("1.txt", b"txt"), ("1.json", description(syn=[" a", "", "b "], caption="c"))]
    record = only(make_tar("a.tar", members), "syn")
    assert isinstance(record, PictureRecord)
    assert record.captions == ("a", "b")


BAD = [
    ([("1.png", b"P")], None, Reason.MISSING_CAPTION),
    ([("1.txt", b"t")], None, Reason.MISSING_IMAGE),
    ([("1.png", b"P"), ("1.txt", b" \n")], None, Reason.EMPTY_TEXT),
    ([("1.png", b"P"), ("1.txt", b"\xff")], None, Reason.INVALID_UNICODE),
    ([("1.png", b"P"), ("1.txt", b"t"), ("1.json", b"{")], None, Reason.BROKEN_JSON),
    ([("1.png", b"P"), ("1.txt", b"t"), ("1.json", b"[]")], None, Reason.BROKEN_JSON),
    ([("1.png", b"P"), ("1.txt", b"t")], "caption", Reason.MISSING_CAPTION),
    ([("1.png", b"P"), ("1.json", description(caption=["a", 5]))], None, Reason.MISSING_CAPTION),
    ([("1.png", b"P"), ("1.json", description(caption=[]))], None, Reason.EMPTY_TEXT),
    ([("1.png", b"P"), ("1.json", b'{"caption": "\\ud800"}')], None, Reason.INVALID_UNICODE),
    ([("1.png", b"P"), ("1.jpg", b"J"), ("1.txt", b"t")], None, Reason.DUPLICATE_MEMBER),
    ([("1.png", b"P"), ("1.txt", b"t"), ("1.txt", b"u")], None, Reason.DUPLICATE_MEMBER),
    (
        [("1.txt", b"t"), ("1.json", description(status="failed_to_download", error_message="404"))],
        None,
        Reason.FAILED_DOWNLOAD,
    ),
]


@pytest.mark.parametrize(("members", "caption_key", "reason"), BAD, ids=range(len(BAD)))
def test_a_bad_record_is_rejected_by_reason(
    make_tar: MakeTar, members: list[tuple[str, bytes]], caption_key: str | None, reason: Reason
) -> None:
    sound = [("2.png", b"P"), ("2.txt", b"t"), ("2.json", description(caption="t"))]
    bad, good = read_image_text_tar(make_tar("a.tar", [*members, *sound]), caption_key)
    assert isinstance(bad, Rejection)
    assert (bad.reason, bad.key) == (reason, "1")
    assert isinstance(good, PictureRecord)
    assert good.key == "2"


def test_the_message_of_a_failed_download_is_kept(make_tar: MakeTar) -> None:
    bad = only(make_tar("a.tar", [("1.json", description(status="failed_to_download", error_message="404"))]))
    assert isinstance(bad, Rejection)
    assert bad.detail == "status is 'failed_to_download': 404"


def test_a_truncated_tar_gives_what_is_whole_and_a_rejection(make_tar: MakeTar) -> None:
    members = [(f"{n}.{suffix}", b"x" * 600) for n in range(3) for suffix in ("png", "txt")]
    path = make_tar("a.tar", members)
    whole = path.read_bytes()
    block = 512 + 1024  # header and padded content of a member
    # Not at a border between members: there a cut cannot be seen.
    for size in (100, 700, block + 700, 3 * block + 100, 3 * block + 700, 5 * block + 512 + 599):
        path.write_bytes(whole[:size])
        *records, last = read_image_text_tar(path)
        assert isinstance(last, Rejection), size
        assert last.reason is Reason.BROKEN_FILE
        assert [record.key for record in records] == [str(n) for n in range(size // (2 * block))]


def test_a_damaged_header_does_not_end_the_file_in_silence(make_tar: MakeTar) -> None:
    members = [(f"{n}.{suffix}", b"x") for n in range(4) for suffix in ("png", "txt")]
    path = make_tar("a.tar", members)
    content = bytearray(path.read_bytes())
    content[1024 * 5 + 150] ^= 0xFF  # in the checksum of 2.txt's header
    path.write_bytes(bytes(content))
    *records, last = read_image_text_tar(path)
    assert [record.key for record in records] == ["0", "1"]
    assert isinstance(last, Rejection)
    assert (last.reason, last.key) == (Reason.BROKEN_FILE, "from 2")


def test_a_file_that_is_no_tar_is_rejected(tmp_path: Path) -> None:
    for content in (b"", b"hello" * 200):
        (tmp_path / "a.tar").write_bytes(content)
        bad = only(tmp_path / "a.tar")
        assert isinstance(bad, Rejection)
        assert bad.reason is Reason.BROKEN_FILE
