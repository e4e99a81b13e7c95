"""A file that is hashed while it is written, on a thread of its own: on two cores hashing costs next to no time."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from megatron_vlm.data.checksums import BlockHasher

SMALL = 1 << 16  # bytes that are hashed at once here: handing them over costs more


class HashedFile:
    """A new file at `path`, for writing. `digests` are those of its blocks, once it is closed.

    What is written must not be changed before the next call.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stream = open(path, "wb")  # noqa: SIM115  closed by close
        self._hasher = BlockHasher()
        self._pool: ThreadPoolExecutor | None = None
        self._pending: Future[None] | None = None
        self._digests: list[str] | None = None

    def write(self, data: bytes | memoryview) -> None:
        self._settle()
        if len(data) < SMALL:
            self._hasher.update(data)
        else:
            self._pool = self._pool or ThreadPoolExecutor(1, thread_name_prefix="hash")
            self._pending = self._pool.submit(self._hasher.update, data)
        self._stream.write(data)

    def writelines(self, pieces: Sequence[bytes | memoryview]) -> None:
        """All of them, hashed beside the writing."""
        self._settle()
        self._pool = self._pool or ThreadPoolExecutor(1, thread_name_prefix="hash")
        self._pending = self._pool.submit(self._hash_all, pieces)
        self._stream.writelines(pieces)

    def adopt(self, path: Path, digests: Sequence[str]) -> None:
        """Become the file at `path`, whose `digests` are known; only where nothing was written yet."""
        self.close()
        os.replace(path, self.path)
        self._digests = list(digests)

    def tell(self) -> int:
        return self._stream.tell()

    def digests(self) -> list[str]:
        """Hex digest of each block, of a file that is closed."""
        self.close()
        assert self._digests is not None
        return self._digests

    def close(self) -> None:
        self._settle()
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None
        self._stream.close()
        if self._digests is None:
            self._digests = self._hasher.finish()

    def discard(self) -> None:
        """Close and forget what could not be written, such as to a full disk; the file stays where it is."""
        with suppress(OSError):  # a buffer that did not fit before does not fit now
            self._stream.close()
        self.close()

    def _hash_all(self, pieces: Sequence[bytes | memoryview]) -> None:
        for piece in pieces:
            self._hasher.update(piece)

    def _settle(self) -> None:
        if self._pending is not None:
            self._pending.result()
            self._pending = None

    def __enter__(self) -> HashedFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> Any:
        self.close()
