"""Patterns stand for the same files in the same order every time; what cannot be opened is named."""

from __future__ import annotations

import gzip
import hashlib
import os
import re
import sys
from pathlib import Path

import pytest

from megatron_vlm.data.sources.opening import (
    InputFile,
    expand_inputs,
    file_sha256,
    input_file,
    open_decompressed,
    open_input,
)
from megatron_vlm.errors import DataError

fsspec = pytest.importorskip("fsspec")


@pytest.fixture
def bucket(request: pytest.FixtureRequest) -> str:
    """Three files of a store in memory."""
    url = f"memory://{request.node.name}"
    for name, content in (("b1.jsonl", b"b"), ("a2.jsonl", b"aa"), ("deep/a3.jsonl", b"aaa")):
        with fsspec.open(f"{url}/{name}", "wb") as stream:
            stream.write(content)
    return url


def names(files: list[InputFile], folder: Path | str) -> list[str]:
    return [file.url.removeprefix(f"{folder}/") for file in files]


def test_order_and_repetition(tmp_path: Path) -> None:
    for name in ("b1.tar", "a2.tar", "a1.tar", "deep/a3.tar"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    found = expand_inputs([f"{tmp_path}/b*", f"{tmp_path}/**/*.tar", f"{tmp_path}/./a1.tar", f"{tmp_path}/d*/*"])
    assert names(found, tmp_path) == ["b1.tar", "a1.tar", "a2.tar", "deep/a3.tar"]
    assert [file.size for file in found] == [6, 6, 6, 11]


def test_a_file_is_taken_once_whatever_it_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jsonl").touch()
    (tmp_path / "link").symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path)
    found = expand_inputs(["a.jsonl", str(tmp_path / "a.jsonl"), "link/*.jsonl"])
    assert [file.url for file in found] == ["a.jsonl"]


def test_a_name_with_brackets_is_a_name(tmp_path: Path) -> None:
    (tmp_path / "a[1].tar").touch()
    assert names(expand_inputs([str(tmp_path / "a[1].tar")]), tmp_path) == ["a[1].tar"]


def test_the_stamp_changes_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.touch()
    os.utime(path, ns=(5, 5))
    before = input_file(str(path))
    assert before == InputFile(str(path), 0, "mtime_ns=5")
    os.utime(path, ns=(6, 6))
    assert input_file(str(path)) != before


def test_lists_of_patterns(tmp_path: Path) -> None:
    for name in ("a.tar", "b.tar", "c.tar", "@d.tar"):
        (tmp_path / name).touch()
    (tmp_path / "inner.txt").write_text(f"{tmp_path}/c*\n")
    (tmp_path / "list.txt").write_text(f"# a comment\n\n  {tmp_path}/b.tar \n@{tmp_path}/inner.txt\n{tmp_path}/@d.tar\n")
    found = expand_inputs([f"@{tmp_path}/list.txt", f"{tmp_path}/*.tar"])
    assert names(found, tmp_path) == ["b.tar", "c.tar", "@d.tar", "a.tar"]
    (tmp_path / "inner.txt").write_text(f"@{tmp_path}/list.txt")
    with pytest.raises(DataError, match=r"list\.txt lists itself"):
        expand_inputs([f"@{tmp_path}/list.txt"])
    (tmp_path / "list.txt").write_bytes(b"\xff")
    with pytest.raises(DataError, match=r"list\.txt is no list of inputs in UTF-8"):
        expand_inputs([f"@{tmp_path}/list.txt"])
    with pytest.raises(DataError, match=r"none\.txt cannot be opened: No such file"):
        expand_inputs([f"@{tmp_path}/none.txt"])


def test_a_pattern_without_files_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "folder.tar").mkdir()
    for pattern in ("*.tar", "none"):
        with pytest.raises(DataError, match="no input file matches"):
            expand_inputs([str(tmp_path / pattern)])
    for folder in (tmp_path / "folder.tar", f"{tmp_path}/"):
        with pytest.raises(DataError, match=r"is a folder; name the files in it, such as '.*\*\*/\*\.jsonl'"):
            expand_inputs([str(folder)])


def test_remote_names_and_patterns(bucket: str) -> None:
    found = expand_inputs([f"{bucket}/b1.jsonl", f"{bucket}/**/*.jsonl", f"{bucket}/*.jsonl"])
    assert [file.size for file in found] == [1, 2, 3]
    assert names(found, bucket) == ["b1.jsonl", "a2.jsonl", "deep/a3.jsonl"]
    assert all(file.stamp.startswith("created=") for file in found)
    for file in found:
        with open_input(file.url) as stream:
            assert len(stream.read()) == file.size
            assert stream.seek(0) == 0
            assert stream.read(1) == file.url.rsplit("/", 1)[1][:1].encode()
    with pytest.raises(DataError, match="no input file matches"):
        expand_inputs([f"{bucket}/*.tar"])
    with pytest.raises(DataError, match="is a folder; name the files in it"):
        expand_inputs([f"{bucket}/deep"])
    for name in ("none", "no*e"):
        with pytest.raises(DataError, match=rf"memory://.*/{re.escape(name)} does not exist"):
            input_file(f"{bucket}/{name}")


def test_what_urls_need_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="nothing://x/y: .*; a local path has no '://'"):
        expand_inputs(["nothing://x/y"])
    monkeypatch.setitem(sys.modules, "dropboxdrivefs", None)
    with pytest.raises(DataError, match=r"dropbox://x/y: .*`pip install 'megatron_vlm\[remote\]'`"):
        open_input("dropbox://x/y")
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    with pytest.raises(DataError, match=r"s3://x/y: .*`pip install 'megatron_vlm\[remote\]'`"):
        open_input("s3://x/y")


def test_a_store_that_fails_says_nothing_of_the_file(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> bytes:
        raise ConnectionResetError("gone")

    stream = open_input(f"{bucket}/b1.jsonl")
    monkeypatch.setattr("fsspec.implementations.memory.MemoryFile.read", fail)
    with pytest.raises(DataError, match=r"b1\.jsonl cannot be read \(ConnectionResetError: gone\)"):
        stream.read()


def test_a_disk_that_fails_says_nothing_of_the_file() -> None:
    with (
        pytest.raises(DataError, match="/proc/self/mem cannot be read: Input/output error"),
        open_input("/proc/self/mem") as stream,
    ):
        stream.read(1)


def test_decompressed_content_and_bytes_read(tmp_path: Path) -> None:
    content = gzip.compress(os.urandom(100_000))
    (tmp_path / "f.gz").write_bytes(content)
    with open_decompressed(str(tmp_path / "f.gz")) as (stream, bytes_read):
        assert bytes_read() == 0
        assert len(stream.read()) == 100_000
        assert bytes_read() == len(content)


def test_sha256(tmp_path: Path, bucket: str) -> None:
    (tmp_path / "f").write_bytes(b"abc")
    assert file_sha256(tmp_path / "f") == hashlib.sha256(b"abc").hexdigest()
    assert file_sha256(f"{bucket}/a2.jsonl") == hashlib.sha256(b"aa").hexdigest()
