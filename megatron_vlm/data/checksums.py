"""sha256 of a dataset's files, block by block, so that damage is found, and found to lie in a few megabytes.

NAME.json keeps them under "checksums"::

    {"algorithm": "sha256", "block_bytes": 67108864, "bin": [hex, ...], "idx": [hex, ...], "sequences": [hex, ...]}

with a digest for each `block_bytes` of a file, the last block shorter, and none for an empty file. "sequences" is of the
.sequences.npy, and is not there where that file is not.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ALGORITHM = "sha256"
BLOCK_BYTES = 64 << 20
_CHUNK = 1 << 20  # read and hashed at once: stays in a core's second-level cache, more or less


class BlockHasher:
    """Digests of a file while it is written: `update` with each piece in order, of any size, then `finish`.

    hashlib lets go of Python's lock while it hashes, so other threads run on.
    """

    def __init__(self, block_bytes: int = BLOCK_BYTES) -> None:
        self.block_bytes = block_bytes
        self.size = 0  # bytes so far
        self._done: list[str] = []
        self._block = hashlib.sha256()

    def update(self, piece: bytes | bytearray | memoryview) -> None:
        """Add the next bytes of the file."""
        rest = memoryview(piece).cast("B")
        while len(rest):
            room = self.block_bytes - self.size % self.block_bytes
            part = rest[:room]
            self._block.update(part)
            self.size += len(part)
            if len(part) == room:
                self._done.append(self._block.hexdigest())
                self._block = hashlib.sha256()
            rest = rest[room:]

    def finish(self) -> list[str]:
        """Hex digest of each block, the last one as it is."""
        unfinished = [self._block.hexdigest()] if self.size % self.block_bytes else []
        return self._done + unfinished


def blocks_of(size: int, block_bytes: int = BLOCK_BYTES) -> list[range]:
    """The bytes of each block of a file of `size` bytes."""
    return [range(start, min(start + block_bytes, size)) for start in range(0, size, block_bytes)]


def block_digest(descriptor: int, block: range, advance: Callable[[int], object] | None = None) -> str:
    """Hex digest of some bytes of an open file; its position is neither used nor moved.

    `advance` is called with the number of bytes each time some were hashed. Raises OSError where they cannot be read, and
    EOFError where the file ends before them.
    """
    digest, at = hashlib.sha256(), block.start
    buffer = memoryview(bytearray(min(_CHUNK, len(block))))
    while at < block.stop:
        count = os.preadv(descriptor, [buffer[: block.stop - at]], at)
        if not count:
            raise EOFError(f"it ends after {at} bytes, where {block.stop} were expected")
        digest.update(buffer[:count])
        at += count
        if advance is not None:
            advance(count)
    return digest.hexdigest()


def file_digests(
    path: Path, block_bytes: int = BLOCK_BYTES, workers: int | None = None, advance: Callable[[int], object] | None = None
) -> list[str]:
    """Hex digest of each block of a file, hashed on `workers` threads (the cores, by default) at once.

    `advance` is called as by `block_digest`, from those threads. Raises OSError where the file cannot be read.
    """
    with open(path, "rb", buffering=0) as file, ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        blocks = blocks_of(os.fstat(file.fileno()).st_size, block_bytes)
        return list(pool.map(lambda block: block_digest(file.fileno(), block, advance), blocks))


def describe_checksums(digests: Mapping[str, list[str]]) -> dict[str, Any]:
    """What NAME.json says under "checksums", from the digests of "bin", "idx" and, where there is one, "sequences"."""
    return {"algorithm": ALGORITHM, "block_bytes": BLOCK_BYTES, **digests}
