"""A file that is written and hashed on threads of its own: beside other work both cost next to no time."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from megatron_vlm.data.checksums import BlockHasher

SMALL = 1 << 16  # bytes that are hashed and written at once here: handing them over costs more
FLUSHED_AT_ONCE = 32 << 20


class HashedFile:
    """A new file at `path`, for writing. `digests` are those of its blocks, once it is closed.

    What is written must not be changed before the next call, which also raises the OSError of a write that failed.

    Args:
        flush_early: have the disk begin to write while the file grows, as it is to stay: a flush at the end is short then.
    """

    def __init__(self, path: Path, flush_early: bool = False) -> None:
        self.path = path
        self._stream = open(path, "wb")  # noqa: SIM115  closed by close
        self._hasher = BlockHasher()
        self._pool: ThreadPoolExecutor | None = None
        self._pending: list[Future[None]] = []
        self._digests: list[str] | None = None
        self._size = 0
        self._flushed = 0 if flush_early else None

    def write(self, data: bytes | memoryview) -> None:
        self._settle()
        self._size += len(data)
        if len(data) < SMALL:
            self._hasher.update(data)
            self._stream.write(data)
            return
        self._pool = self._pool or ThreadPoolExecutor(2, thread_name_prefix="hashed file")
        self._pending = [self._pool.submit(self._hasher.update, data), self._pool.submit(self._write, data)]

    def writelines(self, pieces: Sequence[bytes | memoryview]) -> None:
        """All of them. As one: a thread asks for Python's lock after each piece, and may wait milliseconds for it."""
        self.write(b"".join(pieces) if len(pieces) > 1 else pieces[0] if pieces else b"")

    def _write(self, data: bytes | memoryview) -> None:
        self._stream.write(data)
        if self._flushed is not None and (written := self._stream.tell()) - self._flushed >= FLUSHED_AT_ONCE:
            # Of pages that are not on the disk yet, this begins to write them and drops none.
            os.posix_fadvise(self._stream.fileno(), self._flushed, written - self._flushed, os.POSIX_FADV_DONTNEED)
            self._flushed = written

    def adopt(self, path: Path, digests: Sequence[str]) -> None:
        """Become the file at `path`, whose `digests` are known; only where nothing was written yet."""
        self.close()
        os.replace(path, self.path)
        self._digests = list(digests)

    def tell(self) -> int:
        """Bytes given so far."""
        return self._size

    def digests(self) -> list[str]:
        """Hex digest of each block, of a file that is closed."""
        self.close()
        assert self._digests is not None
        return self._digests

    def close(self) -> None:
        try:
            self._settle()
        finally:
            if self._pool is not None:
                self._pool.shutdown()
                self._pool = None
            self._stream.close()
        if self._digests is None:
            self._digests = self._hasher.finish()

    def discard(self) -> None:
        """Close and forget what could not be written, such as to a full disk; the file stays where it is."""
        for _ in range(2):  # a buffer that did not fit before does not fit now
            with suppress(OSError):
                self.close()

    def _settle(self) -> None:
        pending, self._pending = self._pending, []
        for future in pending:
            future.result()

    def __enter__(self) -> HashedFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> Any:
        self.close()
