"""The index against `tarfile`'s own reading, on its formats and on damage."""

from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_vlm.data.sources.tar_index import member_digest, open_tar_index
from megatron_vlm.errors import DataError


def write_tar(path: Path, members: dict[str, bytes], form: int = tarfile.PAX_FORMAT) -> None:
    with tarfile.open(path, "w", format=form) as tar:
        for name, content in members.items():
            header = tarfile.TarInfo(name)
            header.size = len(content)
            tar.addfile(header, io.BytesIO(content))


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_where_tarfile_finds_them(form: int, tmp_path: Path) -> None:
    members = {f"{'folder/' * (number % 13)}é{number}.jpg": b"x" * (number * 37) for number in range(60)}
    if form != tarfile.USTAR_FORMAT:
        members["long" * 100] = b"long"
    path = tmp_path / "a.tar"
    write_tar(path, members, form)
    index = open_tar_index((str(path),))
    stored = path.read_bytes()
    assert len(index.digests) == len(members)
    for name, content in members.items():
        place = index.find(member_digest(name, False))
        assert place is not None
        tar, offset, size, copies = place
        assert (tar, copies) == (0, 1)
        assert stored[offset : offset + size] == content
    assert index.damage == ()


def test_links_and_other_members(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        header = tarfile.TarInfo("a/one.jpg")
        header.size = 3
        tar.addfile(header, io.BytesIO(b"one"))
        for name, kind, target in [
            ("hard.jpg", tarfile.LNKTYPE, "a/one.jpg"),
            ("again.jpg", tarfile.LNKTYPE, "hard.jpg"),
            ("lost.jpg", tarfile.LNKTYPE, "none.jpg"),
            ("out.jpg", tarfile.LNKTYPE, "../a/one.jpg"),
            ("soft.jpg", tarfile.SYMTYPE, "a/one.jpg"),
            ("folder.jpg", tarfile.DIRTYPE, ""),
        ]:
            link = tarfile.TarInfo(name)
            link.type, link.linkname = kind, target
            tar.addfile(link)
    index = open_tar_index((str(path),))
    one = index.find(member_digest("a/one.jpg", False))
    assert one is not None
    assert index.find(member_digest("hard.jpg", False)) == one
    assert index.find(member_digest("again.jpg", False)) == one
    for name in ("lost.jpg", "out.jpg", "soft.jpg", "folder.jpg"):
        assert index.find(member_digest(name, False)) is None


def test_a_damaged_tar_gives_what_comes_before_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    write_tar(path, {f"{number}.jpg": b"x" * 1000 for number in range(10)})
    stored = bytearray(path.read_bytes())
    stored[5 * 1536 : 5 * 1536 + 100] = b"\xff" * 100  # the header of 5.jpg
    path.write_bytes(stored)
    index = open_tar_index((str(path),))
    assert len(index.digests) == 5
    assert "damaged" in index.damage[0]
    assert "a.tar" in index.damage[0]
    path.write_bytes(stored[: 3 * 1536 + 700])
    assert "damaged" in open_tar_index((str(path),)).damage[0]


def test_tars_that_follow_one_another_in_a_file_are_one(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    stored = b""
    for name in ("one.jpg", "two.jpg", "three.jpg"):
        write_tar(path, {name: name.encode()})
        stored += path.read_bytes()
    path.write_bytes(stored)
    index = open_tar_index((str(path),))
    assert index.damage == ()
    for name in ("one.jpg", "two.jpg", "three.jpg"):
        place = index.find(member_digest(name, False))
        assert place is not None
        assert stored[place[1] : place[1] + place[2]] == name.encode()
    path.write_bytes(stored + b"no header" * 100)
    index = open_tar_index((str(path),))
    assert len(index.digests) == 3
    assert f"near byte {len(stored):,}" in index.damage[0]


def test_what_is_no_tar_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    write_tar(path, {"a.jpg": b"A"})
    packed = gzip.compress(path.read_bytes())
    for content in (packed, b"no tar" * 500, b"\0" * 100 + b"x" * 2000):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"a\.tar cannot be read as an uncompressed tar"):
            open_tar_index((str(path),))
    with pytest.raises(DataError, match="cannot be read"):
        open_tar_index((str(tmp_path / "none.tar"),))


@settings(max_examples=60)
@given(place=st.integers(0, 1535), junk=st.binary(min_size=1, max_size=40))
def test_any_damage_is_an_index_or_a_data_error(place: int, junk: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("damaged") / "a.tar"
    write_tar(path, {"é" * 80: b"A", "b.jpg": b"B"})
    stored = bytearray(path.read_bytes())
    stored[place : place + len(junk)] = junk
    path.write_bytes(stored)
    try:
        found = len(open_tar_index((str(path),)).digests)
    except DataError:
        found = 0
    assert 0 <= found <= 2
