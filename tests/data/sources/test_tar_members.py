"""What tarfile and the headers of other writers say, member by member; and no damage goes by in silence."""

from __future__ import annotations

import io
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_vlm.data.sources.decompression import Damaged
from megatron_vlm.data.sources.tar_members import EndMissing, Kind, TarMembers

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
PART = st.text(st.sampled_from("ab.é漢 "), min_size=1, max_size=40)
MEMBERS = st.lists(st.tuples(st.lists(PART, min_size=1, max_size=6).map("/".join), st.binary(max_size=1100)), max_size=4)


def make(members: list[tuple[str, bytes]], form: int = tarfile.PAX_FORMAT, **fields: object) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=form) as tar:
        for name, content in members:
            header = tarfile.TarInfo(name)
            header.size = len(content)
            for field, value in fields.items():
                setattr(header, field, value)
            tar.addfile(header, io.BytesIO(content))
    return stream.getvalue()


def members_of(content: bytes) -> list[tuple[str, bytes]]:
    tar = TarMembers(io.BytesIO(content))
    return [(m.name, tar.content(m)) for m in tar if m.kind is Kind.FILE]


def until_damage(content: bytes) -> tuple[list[tuple[str, bytes]], Damaged | None]:
    """The files of a tar, and what ends it."""
    tar = TarMembers(io.BytesIO(content))
    found: list[tuple[str, bytes]] = []
    try:
        found.extend((m.name, tar.content(m)) for m in tar if m.kind is Kind.FILE)
    except Damaged as error:
        return found, error
    return found, None


def by_tarfile(content: bytes) -> list[tuple[str, bytes]]:
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as tar:
        return [(m.name, tar.extractfile(m).read()) for m in tar if m.isfile()]  # type: ignore[union-attr]


@pytest.mark.parametrize("form", FORMATS)
@given(members=MEMBERS)
def test_members_are_those_of_tarfile(form: str, members: list[tuple[str, bytes]]) -> None:
    try:
        content = make(members, FORMATS[form])
    except ValueError:  # ustar cannot hold a name as long as this
        return
    assert members_of(content) == by_tarfile(content) == members


def test_long_names_large_times_and_global_headers() -> None:
    name = "folder/" * 60 + "x.jpg"
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        content = make([(name, b"a"), ("y.jpg", b"b")], form, mtime=2**40, uname="ü" * 30)
        assert members_of(content) == [(name, b"a"), ("y.jpg", b"b")]
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "é"}):
        pass
    assert members_of(stream.getvalue()) == []


def test_content_that_nobody_reads_is_passed_over() -> None:
    tar = TarMembers(io.BytesIO(make([("a", b"x" * 3000), ("b", b""), ("c", b"y")])))
    assert [(m.name, m.size, m.offset) for m in tar] == [("a", 3000, 0), ("b", 0, 512 + 3072), ("c", 1, 1024 + 3072)]


def test_links_folders_and_devices_are_told_apart() -> None:
    stream = io.BytesIO()
    kinds = {b"0": Kind.FILE, b"1": Kind.LINK, b"2": Kind.LINK, b"3": Kind.OTHER, b"5": Kind.OTHER, b"6": Kind.OTHER}
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for kind in kinds:
            header = tarfile.TarInfo(f"m{kind.decode()}")
            header.type, header.linkname = kind, "/etc/passwd"
            tar.addfile(header)
    found = list(TarMembers(io.BytesIO(stream.getvalue())))
    assert [(m.name.rstrip("/"), m.kind) for m in found] == [(f"m{kind.decode()}", what) for kind, what in kinds.items()]


def test_sparse_files_are_told_apart() -> None:
    """As GNU tar writes them: its old format, and the newest in pax headers."""
    content = bytearray(make([("s", b"data"), ("next", b"n")], tarfile.GNU_FORMAT))
    content[156:157] = b"S"
    content[148:156] = b" " * 8
    content[148:156] = b"%06o\0 " % sum(content[:512])
    tar = TarMembers(io.BytesIO(bytes(content)))
    assert [(m.name, m.kind) for m in tar] == [("s", Kind.SPARSE), ("next", Kind.FILE)]
    headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "s", "GNU.sparse.realsize": "9999"}
    pax = make([("GNUSparseFile.0/s", b"1\n0\n4\n" + bytes(506) + b"data")], pax_headers=headers)
    assert [(m.name, m.kind) for m in TarMembers(io.BytesIO(pax))] == [("s", Kind.SPARSE)]


@pytest.mark.skipif(shutil.which("tar") is None, reason="needs GNU tar")
@pytest.mark.parametrize("form", ["oldgnu", "gnu", "posix"])
def test_what_gnu_tar_writes(tmp_path: Path, form: str) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    with open(folder / "sparse", "wb") as stream:
        for place in range(1 << 20, 30 << 20, 1 << 20):  # more holes than a header has room for
            stream.seek(place)
            stream.write(b"x")
    long = "l" * 90
    (folder / long).write_bytes(b"content")
    (folder / "link").symlink_to(long)
    path = tmp_path / "a.tar"
    names = ["sparse", long, "link"]
    done = subprocess.run(["tar", "--sparse", f"--format={form}", "-cf", path, "-C", folder, *names], capture_output=True)
    if done.returncode:
        pytest.skip(f"this tar has no such format: {done.stderr.decode()}")
    tar = TarMembers(io.BytesIO(path.read_bytes()))
    found = [(m.name, m.kind, tar.content(m) if m.name == long else b"") for m in tar]
    assert found == [("sparse", Kind.SPARSE, b""), (long, Kind.FILE, b"content"), ("link", Kind.LINK, b"")]


def test_tars_one_after_the_other_are_read_as_one() -> None:
    assert members_of(make([("a", b"1")]) + make([("b", b"2")])) == [("a", b"1"), ("b", b"2")]


def test_a_cut_anywhere_is_seen() -> None:
    members = [(f"{n}.png", b"x" * 600) for n in range(3)]
    whole = make(members, tarfile.GNU_FORMAT)
    end = 3 * (512 + 1024)
    for size in range(0, end + 1, 16):
        found, damage = until_damage(whole[:size])
        assert damage is not None, size
        assert found == members[: (size - 512 - 600) // 1536 + 1 if size >= 1112 else 0], size
        assert isinstance(damage, EndMissing) == (size % 1536 == 0), size


@pytest.mark.parametrize("form", FORMATS)
@given(place=st.integers(0, 511), value=st.integers(0, 255))
def test_a_damaged_header_is_seen(form: str, place: int, value: int) -> None:
    content = bytearray(make([("a", b"1"), ("b", b"2")], FORMATS[form]))
    if content[1024 + place] == value:
        return
    content[1024 + place] = value
    found, damage = until_damage(bytes(content))
    if damage is None:
        assert found == [("a", b"1"), ("b", b"2")]
        assert 148 <= place < 156  # the white space around a checksum may change
    else:
        assert "header is damaged at byte 1024" in str(damage)


MANGLE: list[Callable[[bytes, int], bytes]] = [
    lambda content, n: content[:n],
    lambda content, n: content[n:],
    lambda content, n: content[:n] + bytes([n % 256]) + content[n + 1 :],
]


@given(
    members=MEMBERS, form=st.sampled_from(sorted(FORMATS.values())), mangle=st.sampled_from(MANGLE), n=st.integers(0, 4000)
)
def test_damage_never_raises_anything_else(members: list, form: int, mangle: Callable[[bytes, int], bytes], n: int) -> None:
    try:
        content = make(members, form)
    except ValueError:
        return
    whole = members_of(content)
    found, damage = until_damage(mangle(content, n))
    assert damage is not None or len(found) <= len(whole)
    found, _ = until_damage(content[:n])
    assert found == whole[: len(found)]


@given(
    kind=st.sampled_from([b"x", b"g", b"L", b"K", b"S", b"0"]), content=st.binary(max_size=200), field=st.binary(max_size=12)
)
def test_sound_checksums_over_random_headers_never_raise_anything_else(kind: bytes, content: bytes, field: bytes) -> None:
    header = bytearray(make([("a", content)], tarfile.USTAR_FORMAT))
    header[124 : 124 + len(field)] = field
    header[156:157] = kind
    header[482] = 1
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header[:512])
    found, _ = until_damage(bytes(header))
    assert len(found) <= 1
