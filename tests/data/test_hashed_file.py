"""Files that are hashed while they are written: the bytes and their digests, however they come, and a disk that is full."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from megatron_vlm.data.checksums import file_digests
from megatron_vlm.data.hashed_file import FLUSHED_AT_ONCE, SMALL, HashedFile


@pytest.mark.parametrize("flush_early", [False, True])
def test_pieces_of_all_sizes_come_in_order_and_the_digests_are_the_files(tmp_path: Path, flush_early: bool) -> None:
    small, large = bytes(range(256)), bytes(range(251)) * (FLUSHED_AT_ONCE // 251 + 7)
    file = HashedFile(tmp_path / "x", flush_early)
    file.write(small)
    file.writelines([large, memoryview(small), b"", large])
    file.writelines([])
    file.write(memoryview(large)[: SMALL + 1])
    file.writelines([small])
    assert file.tell() == 3 * len(small) + 2 * len(large) + SMALL + 1
    digests = file.digests()
    assert (tmp_path / "x").read_bytes() == b"".join((small, large, small, large, large[: SMALL + 1], small))
    assert digests == file_digests(tmp_path / "x")
    assert len(digests) == 2


def test_a_write_that_fails_is_told_by_the_next_call_or_the_last() -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this system has no device that is always full")
    file = HashedFile(full)
    file.write(bytes(4 * SMALL))
    with pytest.raises(OSError, match="No space") as failed:
        file.write(b"x")
    assert failed.value.errno == errno.ENOSPC
    file.discard()
    other = HashedFile(full)
    other.write(b"a few bytes, which the buffer takes")
    with pytest.raises(OSError, match="No space"):
        other.close()
    other.discard()
