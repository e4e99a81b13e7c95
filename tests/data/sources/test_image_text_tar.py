"""Members become records whatever their order, and what is wrong with a record is told apart."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from megatron_vlm.data.captions import CaptionChoice
from megatron_vlm.data.quarantine import Reason, Rejection
from megatron_vlm.data.records import Picture, Record, Text, Unit
from megatron_vlm.data.sources.caption_rule import CaptionRule, caption_rule
from megatron_vlm.data.sources.image_text_tar import ImageTextTar
from megatron_vlm.errors import ConfigError

MakeTar = Callable[[str, Sequence[tuple[str, bytes]]], Path]
ReadSource = Callable[..., list[Record | Rejection]]


def description(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


def pairs(record: Record | Rejection) -> list[tuple[bytes, str]]:
    """Picture and caption of each document."""
    assert isinstance(record, Record), record
    found = []
    for picture, caption in record.documents:
        assert isinstance(picture, Picture)
        assert isinstance(caption, Text)
        assert caption.learnt
        found.append((picture.encoded, caption.text))
    return found


def test_members_are_grouped_by_key_in_any_order(make_tar: MakeTar, read_source: ReadSource) -> None:
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
            ("index.csv", b"of another kind"),
        ],
    )
    records = read_source(ImageTextTar(), path)
    assert [(record.key, *pairs(record)) for record in records] == [
        ("x/1", (b"J", "one")),
        ("x/2", (b"P", "two")),
        ("y/2", (b"W", "three")),
    ]
    assert [record.offset for record in records] == [0, 3 * 1024, 7 * 1024]
    for suffix, compress in ((".tar.gz", gzip.compress), (".tgz", gzip.compress), (".tar.zst", zstandard.compress)):
        packed = path.with_name(f"a{suffix}")
        packed.write_bytes(compress(path.read_bytes()))
        assert [pairs(record) for record in read_source(ImageTextTar(), packed)] == [pairs(record) for record in records]


def test_captions_of_a_list_are_the_first_one_drawn_or_all(make_tar: MakeTar, read_source: ReadSource) -> None:
    members = [
        (f"{n:04}.{suffix}", content)
        for n in range(400)
        for suffix, content in (("png", b"P"), ("syn.json", description(syn_text=[" a", "", "b "])), ("txt", b"t"))
    ]
    path = make_tar("a.tar", members)

    def captions(choice: CaptionChoice, seed: int = 0) -> list[str]:
        source = ImageTextTar(caption_rule("syn.json:syn_text", choice, seed))
        return [caption for record in read_source(source, path) for _, caption in pairs(record)]

    assert captions(CaptionChoice.FIRST) == ["a"] * 400
    assert captions(CaptionChoice.ALL) == ["a", "b"] * 400
    drawn = captions(CaptionChoice.SAMPLE)
    assert 140 < drawn.count("a") < 260  # 200 expected, standard deviation 10
    assert drawn == captions(CaptionChoice.SAMPLE) != captions(CaptionChoice.SAMPLE, seed=1)


def test_fields_are_drawn_by_weight_among_those_that_are_there(make_tar: MakeTar, read_source: ReadSource) -> None:
    members = []
    for n in range(2000):
        members += [(f"{n:04}.jpg", b"J"), (f"{n:04}.txt", b"alt"), (f"{n:04}.json", description(syn=["s", "t"]))]
    members += [("x.jpg", b"J"), ("x.txt", b" "), ("x.json", description(syn="only"))]
    path = make_tar("a.tar", members)

    def captions(choice: CaptionChoice, seed: int = 3) -> list[list[str]]:
        source = ImageTextTar(caption_rule({"txt": 1, "json:syn": 3}, choice, seed))
        return [[caption for _, caption in pairs(record)] for record in read_source(source, path)]

    *drawn, last = captions(CaptionChoice.SAMPLE)
    counts = Counter(caption for (caption,) in drawn)
    assert last == ["only"]
    assert 420 < counts["alt"] < 580  # 500 expected, standard deviation 19
    assert 650 < counts["s"] < 850  # 750 expected: a caption is drawn independently of its field
    assert captions(CaptionChoice.ALL)[0] == ["alt", "s", "t"]
    assert {caption for (caption,) in captions(CaptionChoice.FIRST)[:-1]} == {"alt", "s"}


BAD = [
    ([("1.png", b"P"), ("1.npz", b"")], None, Reason.MISSING_CAPTION),
    ([("1.txt", b"t"), ("1.gif", b"G")], None, Reason.MISSING_IMAGE),
    ([("1.png", b"P"), ("1.txt", b" \n")], None, Reason.EMPTY_TEXT),
    ([("1.png", b"P"), ("1.txt", b"\xff")], None, Reason.INVALID_UNICODE),
    ([("1.png", b"P"), ("1.txt", b"t"), ("1.json", b"{")], None, Reason.BROKEN_JSON),
    ([("1.png", b"P"), ("1.txt", b"t"), ("1.json", b"[]")], None, Reason.BROKEN_JSON),
    ([("1.png", b"P"), ("1.json", b'{"caption": "\xff"}')], None, Reason.INVALID_UNICODE),
    ([("1.png", b"P"), ("1.txt", b"t")], "json:caption", Reason.MISSING_CAPTION),
    ([("1.png", b"P"), ("1.json", description(caption=None))], None, Reason.MISSING_CAPTION),
    ([("1.png", b"P"), ("1.json", description(caption=["a", 5]))], None, Reason.MISSING_CAPTION),
    ([("1.png", b"P"), ("1.json", description(caption=[]))], None, Reason.EMPTY_TEXT),
    ([("1.png", b"P"), ("1.json", b'{"caption": "\\ud800"}')], None, Reason.INVALID_UNICODE),
    ([("1.png", b"P"), ("1.jpg", b"J"), ("1.txt", b"t")], None, Reason.DUPLICATE_MEMBER),
    ([("1.png", b"P"), ("1.txt", b"t"), ("1.txt", b"u")], None, Reason.DUPLICATE_MEMBER),
    ([("1.png", b"P" * 2000), ("1.txt", b"t")], None, Reason.OVERSIZED_IMAGE),
    ([("1.png", b"P"), ("1.txt", b"t" * 2000)], None, Reason.MISSING_TEXT),
    (
        [("1.txt", b"t"), ("1.json", description(status="failed_to_download", error_message="404"))],
        None,
        Reason.FAILED_DOWNLOAD,
    ),
]


@pytest.mark.parametrize(("members", "captions", "reason"), BAD, ids=range(len(BAD)))
def test_a_bad_record_is_rejected_by_reason(
    make_tar: MakeTar, read_source: ReadSource, members: list[tuple[str, bytes]], captions: str | None, reason: Reason
) -> None:
    sound = [("2.png", b"P"), ("2.txt", b"t"), ("2.json", description(caption="t"))]
    source = ImageTextTar(caption_rule(captions), limit=1000)
    bad, good = read_source(source, make_tar("a.tar", [*members, *sound]))
    assert isinstance(bad, Rejection)
    assert (bad.reason, bad.key) == (reason, "1")
    assert (good.key, *pairs(good)) == ("2", (b"P", "t"))


def test_details_say_what_was_seen(make_tar: MakeTar, read_source: ReadSource) -> None:
    path = make_tar(
        "a.tar",
        [
            ("1.json", description(status="failed_to_download", error_message="404")),
            ("2.txt", b"t"),
            ("2.gif", b"G"),
            ("3.png", b"P"),
            ("3.json", description(alt="x")),
        ],
    )
    assert [outcome.detail for outcome in read_source(ImageTextTar(), path) if isinstance(outcome, Rejection)] == [
        "status is 'failed_to_download': '404'",
        "no .jpeg, .jpg, .png, .webp; it has .txt, .gif",
        "no 'txt' or 'json:caption'; it has a picture, .json; the .json has 'alt'",
    ]


def test_halves_of_records_are_told_that_they_should_be_neighbours(make_tar: MakeTar, read_source: ReadSource) -> None:
    path = make_tar("a.tar", [("1.png", b"P"), ("2.png", b"P"), ("1.txt", b"t"), ("2.txt", b"t")])
    outcomes = [outcome for outcome in read_source(ImageTextTar(), path) if isinstance(outcome, Rejection)]
    ending = " alone, and members of a record have to be neighbours in the tar"
    assert [outcome.detail for outcome in outcomes] == [
        *[f"no 'txt' or 'json:caption'; it has a picture{ending}"] * 2,
        *[f"no .jpeg, .jpg, .png, .webp; it has .txt{ending}"] * 2,
    ]


@pytest.mark.parametrize("name", ["../1.png", "a/../../1.png", "/tmp/1.png"])
def test_paths_that_lead_out_of_the_tar_are_rejected(make_tar: MakeTar, read_source: ReadSource, name: str) -> None:
    caption = name.replace(".png", ".txt")
    bad, good = read_source(
        ImageTextTar(), make_tar("a.tar", [(name, b"P"), (caption, b"t"), ("2.png", b"P"), ("2.txt", b"t")])
    )
    assert isinstance(bad, Rejection)
    assert bad.reason is Reason.ESCAPING_PATH
    assert pairs(good) == [(b"P", "t")]


@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.GNUTYPE_SPARSE])
def test_links_and_sparse_files_are_never_read(tmp_path: Path, read_source: ReadSource, kind: bytes) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for name, content in (
            ("0.png", b"P"),
            ("0.txt", b"t"),
            ("1.png", b""),
            ("1.txt", b"t"),
            ("2.png", b"P"),
            ("2.txt", b"t"),
        ):
            header = tarfile.TarInfo(name)
            header.size = len(content)
            if name == "1.png":
                header.type, header.linkname = kind, "0.png"
            tar.addfile(header, io.BytesIO(content))
    first, bad, last = read_source(ImageTextTar(), path)
    assert isinstance(bad, Rejection)
    assert (bad.key, bad.reason) == ("1", Reason.MISSING_IMAGE if kind == b"S" else Reason.ESCAPING_PATH)
    assert pairs(first) == pairs(last) == [(b"P", "t")]


def test_a_truncated_tar_gives_what_is_whole_and_a_rejection(make_tar: MakeTar, read_source: ReadSource) -> None:
    members = [(f"{n}.{suffix}", b"x" * 600) for n in range(3) for suffix in ("png", "txt")]
    path = make_tar("a.tar", members)
    whole = path.read_bytes()
    block = 512 + 1024  # header and padded content of a member
    for size in (0, 100, 700, block + 700, 3 * block + 100, 3 * block + 700, 4 * block, 5 * block + 512 + 599, 6 * block):
        path.write_bytes(whole[:size])
        *records, last = read_source(ImageTextTar(), path)
        assert isinstance(last, Rejection), size
        assert last.reason is Reason.BROKEN_FILE
        assert [record.key for record in records] == [str(n) for n in range(size // (2 * block))]


def test_a_damaged_header_does_not_end_the_file_in_silence(make_tar: MakeTar, read_source: ReadSource) -> None:
    members = [(f"{n}.{suffix}", b"x") for n in range(4) for suffix in ("png", "txt")]
    path = make_tar("a.tar", members)
    content = bytearray(path.read_bytes())
    content[1024 * 5 + 150] ^= 0xFF  # in the checksum of 2.txt's header
    path.write_bytes(bytes(content))
    *records, last = read_source(ImageTextTar(), path)
    assert [record.key for record in records] == ["0", "1"]
    assert isinstance(last, Rejection)
    assert (last.reason, last.key, last.number) == (Reason.BROKEN_FILE, "2", 2)


def test_a_file_that_is_no_tar_is_rejected(tmp_path: Path, read_source: ReadSource) -> None:
    for content in (b"", b"hello" * 200):
        for name in ("a.tar", "a.tar.gz"):
            (tmp_path / name).write_bytes(content)
            (bad,) = read_source(ImageTextTar(), tmp_path / name)
            assert isinstance(bad, Rejection)
            assert bad.reason is Reason.BROKEN_FILE


def test_names_that_are_no_unicode_are_written_down_escaped(tmp_path: Path, read_source: ReadSource) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for suffix in ("png", "txt"):
            header = tarfile.TarInfo(f"caf\udce9.{suffix}")
            header.size = 1
            tar.addfile(header, io.BytesIO(b"x"))
    (record,) = read_source(ImageTextTar(), path)
    assert (record.key, pairs(record)) == ("caf\\xe9", [(b"x", "x")])


SUFFIXES = st.sampled_from(["png", "jpg", "txt", "json", "syn.json", "npz"])
CONTENTS = st.one_of(
    st.binary(max_size=30), st.sampled_from([b'{"caption": "c"}', b'{"status": 5}', b'{"caption": ["a", "\\ud800"]}'])
)


@given(members=st.lists(st.tuples(st.sampled_from("abc"), SUFFIXES, CONTENTS), max_size=12), cut=st.integers(0, 14000))
def test_random_members_never_raise(
    tmp_path_factory: pytest.TempPathFactory, members: list[tuple[str, str, bytes]], cut: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "random.tar"
    with tarfile.open(path, "w") as tar:
        for key, suffix, content in members:
            header = tarfile.TarInfo(f"{key}.{suffix}")
            header.size = len(content)
            tar.addfile(header, io.BytesIO(content))
    whole = path.read_bytes()
    for content in (whole, whole[:cut]):
        path.write_bytes(content)
        for captions in (None, {"txt": 1.0, "syn.json:a.b": 2.0}):
            source = ImageTextTar(caption_rule(captions, CaptionChoice.SAMPLE))
            for outcome in source.read(Unit(str(path), 0, 1, len(content))):
                assert outcome.key in ("", "a", "b", "c")


def test_fields_that_a_tar_cannot_have_are_refused() -> None:
    for name in ("json", "jpg", "txt:caption", "json:", ":caption"):
        with pytest.raises(ConfigError, match=rf"captions: '{name}'"):
            ImageTextTar(caption_rule(name))
    with pytest.raises(ConfigError, match="the weight of 'txt' is 0"):
        caption_rule({"txt": 0})
    with pytest.raises(ConfigError, match="the weight of 'txt' is nan"):
        caption_rule({"txt": float("nan")})
    with pytest.raises(ConfigError, match="named twice"):
        CaptionRule((("txt", 1), ("txt", 2)))
    for nothing in ("", {}):
        with pytest.raises(ConfigError, match="names no field"):
            caption_rule(nothing)
