"""What a run finds around its output, and what it leaves there."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import resource
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from megatron_vlm.data.building import build as building
from megatron_vlm.data.building.build import parts_folder, take_lock
from megatron_vlm.data.building.options import BuildOptions, Split
from megatron_vlm.data.indexed_reader import IndexedReader
from megatron_vlm.data.indexed_writer import IndexedWriter
from megatron_vlm.data.preprocess import preprocess_text
from megatron_vlm.data.tokenizer import Tokenizer
from megatron_vlm.errors import DataError


@pytest.fixture
def prose(tmp_path: Path) -> Path:
    path = tmp_path / "prose.jsonl"
    path.write_text("".join(json.dumps({"text": f"red square {n}"}) + "\n" for n in range(200)))
    return path


class Stdin:
    def __init__(self, content: bytes) -> None:
        self.buffer = io.BytesIO(content)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_that_is_not_its_own_is_left_alone(prose: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    own = tmp_path / "prose.parts"
    own.mkdir()
    source = prose.rename(own / "0.jsonl")
    with pytest.raises(DataError, match=r"prose\.parts holds 0\.jsonl.*choose another output"):
        preprocess_text([str(source)], tmp_path / "prose", tokenizer)
    assert names(own) == ["0.jsonl"]


@pytest.mark.parametrize("output", [".", "/"])
def test_an_output_without_a_name(prose: Path, tokenizer: Tokenizer, output: str) -> None:
    with pytest.raises(DataError, match="names no dataset"):
        preprocess_text([str(prose)], output, tokenizer)


def test_an_output_where_nothing_can_be_written(prose: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"d\.parts.*cannot be written \(Not a directory\): choose another output"):
        preprocess_text([str(prose)], prose / "d", tokenizer)
    (tmp_path / "d.parts").write_text("")
    with pytest.raises(DataError, match=r"d\.parts.*cannot be written \(File exists\)"):
        preprocess_text([str(prose)], tmp_path / "d", tokenizer)


@pytest.mark.parametrize("split", [None, Split(("train", "valid"), (1, 1))])
def test_what_is_at_the_name_of_the_metadata_is_found_before_the_work(
    prose: Path, tokenizer: Tokenizer, tmp_path: Path, split: Split | None
) -> None:
    foreign = tmp_path / ("d_valid.json" if split else "d.json")
    foreign.write_text("{}")
    with pytest.raises(DataError, match="not a dataset's metadata"):
        preprocess_text([str(prose)], tmp_path / "d", tokenizer, options=BuildOptions(split=split))
    assert names(tmp_path) == sorted([foreign.name, "prose.jsonl"])


def test_an_input_that_the_run_would_replace(prose: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    prose.write_text(prose.read_text() + '{"other": 1}\n')
    preprocess_text([str(tmp_path / "*.jsonl")], tmp_path / "d", tokenizer)
    assert (tmp_path / "d.quarantine.jsonl").is_file()
    with pytest.raises(DataError, match=r"d\.quarantine\.jsonl is an input, and has the name of a file of the output"):
        preprocess_text([str(tmp_path / "*.jsonl")], tmp_path / "d", tokenizer)


def test_older_shards_do_not_mix_with_new_ones(prose: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    def run(shard_bytes: int) -> None:
        preprocess_text([str(prose)], tmp_path / "out" / "d", tokenizer, options=BuildOptions(shard_bytes=shard_bytes))

    run(400)
    before = names(tmp_path / "out")
    with pytest.raises(
        DataError, match=r"d_00001\.idx is there from an earlier run, and the last shard of this one is d_00000"
    ):
        run(1 << 20)
    assert [name for name in names(tmp_path / "out") if name != "d.parts"] == before


def test_many_shards_need_few_open_files(prose: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 40, before[1]))
    try:
        options = BuildOptions(shard_bytes=100)
        result = preprocess_text([str(prose)], tmp_path / "d", tokenizer, options=options).result
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert len(result.outputs) > 20
    assert sum(IndexedReader(output.prefix).document_count for output in result.outputs) == 200


def test_a_run_that_waited_for_another_begins_with_a_folder_of_its_own(
    prose: Path, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first removes its parts while the second tries to get the lock that is among them."""
    monkeypatch.setattr(building, "LOCK_SECONDS", 30)
    folder, inside = parts_folder(tmp_path / "d"), threading.Event()

    def first() -> None:
        with building._only_run(folder):
            inside.set()
            time.sleep(0.3)
            building._remove(folder)
            time.sleep(0.3)

    thread = threading.Thread(target=first)
    thread.start()
    inside.wait()
    summary = preprocess_text([str(prose)], tmp_path / "d", tokenizer)
    thread.join()
    assert summary.totals()["documents"] == 200
    assert names(tmp_path) == ["d.bin", "d.idx", "d.json", "d.sequences.npy", "prose.jsonl"]


def in_use(path: str, folder: int | None) -> bool:
    """Whether this process has a file open."""
    status = os.stat(path, dir_fd=folder, follow_symlinks=False)
    for number in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            if os.path.samestat(os.stat(f"/proc/self/fd/{number}"), status):
                return True
    return False


def on_nfs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have an open file that is removed keep its place under another name until it is closed, as NFS clients do."""
    own = os.unlink

    def unlink(path: Any, *, dir_fd: int | None = None) -> None:
        if not in_use(path, dir_fd):
            own(path, dir_fd=dir_fd)
        elif os.path.basename(path).startswith(".nfs"):
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        else:
            os.rename(path, os.path.join(os.path.dirname(path), ".nfs0001"), src_dir_fd=dir_fd, dst_dir_fd=dir_fd)

    monkeypatch.setattr(os, "unlink", unlink)


def test_nothing_is_left_on_nfs(
    prose: Path, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    on_nfs(monkeypatch)
    assert preprocess_text([str(prose)], tmp_path / "d", tokenizer).totals()["documents"] == 200
    assert names(tmp_path) == ["d.bin", "d.idx", "d.json", "d.sequences.npy", "prose.jsonl"]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("call", ["rmdir", "replace"])
def test_a_folder_that_cannot_be_removed_is_named_and_no_error(
    prose: Path,
    tokenizer: Tokenizer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    call: str,
) -> None:
    own = getattr(os, call)

    def busy(path: Any, *args: Any, **more: Any) -> Any:
        if os.path.basename(path).startswith("d.parts"):
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))
        return own(path, *args, **more)

    monkeypatch.setattr(os, call, busy)
    for _ in range(2):  # what the first left is no hindrance to the second
        assert preprocess_text([str(prose)], tmp_path / "d", tokenizer).totals()["documents"] == 200
        (line,) = capsys.readouterr().err.splitlines()
        assert re.search(r"d\.parts(\.done)? could not be removed \(Directory not empty\), and is of no use any more", line)


@contextmanager
def small_files() -> Iterator[None]:
    """A disk with room for 1000 bytes a file: the kernel refuses the next one, as a full disk does. Not for longer than the
    call that is tested: a log that pytest writes is a file too."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


def test_a_part_that_does_not_fit_is_not_left_behind(
    prose: Path, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(building, "FULL", (27,))  # EFBIG, in place of ENOSPC
    with pytest.raises(DataError, match="is full"), small_files():
        preprocess_text([str(prose)], tmp_path / "d", tokenizer)
    assert names(parts_folder(tmp_path / "d")) == ["job", "lock"]


def test_an_index_that_does_not_fit_costs_no_finished_part(
    prose: Path, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: IndexedWriter) -> Any:
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as patched:
        patched.setattr(IndexedWriter, "_write_index", full)
        with pytest.raises(DataError, match="is full"):
            preprocess_text([str(prose)], tmp_path / "d", tokenizer)
    assert names(tmp_path) == ["d.parts", "prose.jsonl"]
    assert preprocess_text([str(prose)], tmp_path / "d", tokenizer).result.again == 1


def test_of_a_split_all_parts_have_their_names_or_none(
    prose: Path, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = IndexedWriter._write_index

    def full(self: IndexedWriter) -> Any:
        if self.prefix.name == "d_valid":
            raise OSError(28, os.strerror(28))
        return own(self)

    monkeypatch.setattr(IndexedWriter, "_write_index", full)
    with pytest.raises(DataError, match="is full"):
        preprocess_text([str(prose)], tmp_path / "d", tokenizer, options=BuildOptions(split=Split.parse("98,1,1")))
    assert names(tmp_path) == ["d.parts", "prose.jsonl"]


@pytest.mark.parametrize("content", [b"", b'{"other": 1}\n'])
def test_standard_input_leaves_no_file_where_nothing_can_be_used(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    monkeypatch.setattr(sys, "stdin", Stdin(content))
    with pytest.raises(DataError, match="<stdin>"):
        preprocess_text(["-"], tmp_path / "d", tokenizer)
    assert names(tmp_path) == []


def test_standard_input_that_does_not_fit(
    prose: Path, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(building, "FULL", (27,))
    monkeypatch.setattr(sys, "stdin", Stdin(prose.read_bytes()))
    with pytest.raises(DataError, match="is full"), small_files():
        preprocess_text(["-"], tmp_path / "d", tokenizer)
    assert names(tmp_path) == ["prose.jsonl"]


def test_a_second_run_does_not_touch_what_the_first_reads(
    prose: Path, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spooled = tmp_path / "d.stdin.jsonl"
    spooled.write_bytes(b"the first's")
    with spooled.open("ab") as stream:
        assert take_lock(stream, spooled)
        monkeypatch.setattr(sys, "stdin", Stdin(prose.read_bytes()))
        with pytest.raises(DataError, match="another run is writing"):
            preprocess_text(["-"], tmp_path / "d", tokenizer)
    assert spooled.read_bytes() == b"the first's"
    summary = preprocess_text(["-"], tmp_path / "d", tokenizer)  # what a run that was killed left is no hindrance
    assert summary.metadata["sources"][0]["path"] == "<stdin>"
    assert not spooled.exists()
