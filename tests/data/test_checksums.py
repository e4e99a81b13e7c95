"""Digests by block: the same however the bytes came, and those of hashlib over the blocks."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_vlm.data.checksums import BLOCK_BYTES, BlockHasher, block_digest, describe_checksums, file_digests


def expected(content: bytes, block: int) -> list[str]:
    return [hashlib.sha256(content[at : at + block]).hexdigest() for at in range(0, len(content), block)]


@given(st.lists(st.binary(max_size=40)), st.integers(1, 50))
def test_pieces_of_any_size_give_the_digests_of_the_blocks(pieces: list[bytes], block: int) -> None:
    hasher = BlockHasher(block)
    so_far = b""
    for piece in pieces:
        hasher.update(piece)
        so_far += piece
        assert hasher.finish() == expected(so_far, block)
    assert hasher.size == len(so_far)


def test_anything_with_bytes_can_be_hashed() -> None:
    one, other = BlockHasher(), BlockHasher()
    one.update(memoryview(bytearray(range(64))).cast("i"))
    other.update(bytes(range(64)))
    assert one.finish() == other.finish()


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("size", [0, 1, 999, 1000, 1001, 3_500_000])
def test_files_on_threads(tmp_path: Path, size: int, workers: int) -> None:
    content = os.urandom(size)
    (tmp_path / "f").write_bytes(content)
    block = 1000 if size < 10_000 else 1_500_000
    counted: list[int] = []
    assert file_digests(tmp_path / "f", block, workers, counted.append) == expected(content, block)
    assert sum(counted) == size


def test_a_file_that_ends_early_is_told(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"short")
    with open(tmp_path / "f", "rb") as file, pytest.raises(EOFError, match="ends after 5 bytes, where 9"):
        block_digest(file.fileno(), range(2, 9))


def test_the_entry_of_the_metadata(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    (tmp_path / "b").write_bytes(b"")
    digests = {"bin": file_digests(tmp_path / "a"), "idx": file_digests(tmp_path / "b")}
    assert describe_checksums(digests) == {
        "algorithm": "sha256",
        "block_bytes": 67108864,
        "bin": ["ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"],
        "idx": [],
    }
    assert BLOCK_BYTES == 67108864
