"""What the standard tools wrote comes back, and damage is told apart from an end."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import struct
from collections.abc import Callable
from functools import partial

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from megatron_vlm.data.sources.decompression import Damaged, decompressed, split_compression
from megatron_vlm.errors import DataError

COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".zst": zstandard.compress,
    ".bz2": partial(bz2.compress, compresslevel=1),
    ".xz": partial(lzma.compress, preset=0),
}
LINES = b"".join(b"%d %x\n" % (n * n, n * 7919) for n in range(40_000))


def read_all(content: bytes, suffix: str) -> tuple[bytes, Damaged | None]:
    stream = decompressed(io.BytesIO(content), f"x{suffix}")
    parts = []
    try:
        while part := stream.read1(1 << 20):  # type: ignore[attr-defined]
            parts.append(part)
    except Damaged as error:
        return b"".join(parts), error
    return b"".join(parts), None


@pytest.mark.parametrize("suffix", COMPRESS)
def test_all_frames_of_a_file_are_read(suffix: str) -> None:
    compress = COMPRESS[suffix]
    assert read_all(compress(LINES), suffix) == (LINES, None)
    assert read_all(compress(b"one") + compress(b"") + compress(b"two"), suffix) == (b"onetwo", None)


@pytest.mark.parametrize("suffix", COMPRESS)
def test_what_precedes_damage_is_read_and_then_it_is_told(suffix: str) -> None:
    whole = COMPRESS[suffix](LINES)
    for size in (0, 1, len(whole) // 2, len(whole) - 1):
        content, damage = read_all(whole[:size], suffix)
        assert damage is not None, size
        assert LINES.startswith(content)
        assert len(content) > len(LINES) // 4 or size < 2
    _, damage = read_all(b"this is no such file", suffix)
    assert damage is not None
    _, damage = read_all(whole + b"rubbish that follows it", suffix)
    assert damage is not None


@pytest.mark.parametrize("suffix", COMPRESS)
@given(content=st.binary(max_size=100), place=st.integers(0, 2**16), value=st.integers(0, 255))
def test_a_changed_byte_never_raises_anything_else(suffix: str, content: bytes, place: int, value: int) -> None:
    stored = bytearray(COMPRESS[suffix](content))
    stored[place % len(stored)] = value
    read_all(bytes(stored), suffix)


def test_zeros_after_gzip_and_skippable_zstandard_frames() -> None:
    assert read_all(gzip.compress(b"a") + bytes(600) + gzip.compress(b"b") + bytes(9), ".gz") == (b"ab", None)
    skippable = struct.pack("<II", 0x184D2A50, 5) + b"hello"
    assert read_all(skippable + zstandard.compress(b"x") + skippable, ".zst") == (b"x", None)


@pytest.mark.parametrize("suffix", COMPRESS)
def test_a_bomb_is_read_in_bounded_memory(suffix: str) -> None:
    size = 20 << 20
    stream = decompressed(io.BytesIO(COMPRESS[suffix](bytes(size))), f"x{suffix}")
    total = 0
    while part := stream.read1(1 << 20):  # type: ignore[attr-defined]
        assert len(part) <= 1 << 20
        total += len(part)
    assert total == size


def test_names() -> None:
    assert split_compression("/a.b/C.JSONL.GZ") == ("c.jsonl", ".gz")
    assert split_compression("s3://b/a.tgz") == ("a.tar", ".tgz")
    assert split_compression("https://h/a.jsonl.zst?download=true") == ("a.jsonl", ".zst")
    assert split_compression("a.txt") == ("a.txt", "")
    assert split_compression(".gz") == (".gz", "")
    for suffix in (".lz4", ".br", ".7z", ".zip", ".rar"):
        with pytest.raises(DataError, match=rf"x\.jsonl\{suffix}: \{suffix} files are not read"):
            decompressed(io.BytesIO(), f"x.jsonl{suffix}")
