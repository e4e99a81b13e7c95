"""Copying ranges of a file to the end of another: long ones inside the kernel, short ones gathered into large writes."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from megatron_vlm.errors import DataError

LONG = 1 << 20  # ranges from here on are copied by the kernel
_AT_ONCE = 64 << 20
_GATHERED = 4 << 20
#: what says that these two files cannot be copied inside the kernel, rather than that something is wrong
_NOT_HERE = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF}


class ByteCopier:
    """Appends ranges of one mapped file to an open one; a context manager, which writes what was gathered when left.

    Args:
        source: path of the file.
        mapped: its bytes.
        target: descriptor that is written at its position.
        advance: called with the number of bytes as they are copied.
    """

    def __init__(
        self, source: Path, mapped: mmap.mmap | bytes, target: int, advance: Callable[[int], object] | None = None
    ) -> None:
        self._path, self._target, self._advance = source, target, advance
        self._mapped = memoryview(mapped)
        self._source = os.open(source, os.O_RDONLY)
        self._gathered: list[memoryview] = []
        self._size = 0
        self._in_kernel = hasattr(os, "copy_file_range")

    def append(self, start: int, stop: int) -> None:
        """Copy bytes `start` to `stop`. Raises OSError, such as of a full disk, and DataError where the file ends early."""
        if stop - start >= LONG:
            self.flush()
            self._copy_long(start, stop)
            return
        self._gathered.append(self._mapped[start:stop])
        self._size += stop - start
        if self._size >= _GATHERED:
            self.flush()

    def flush(self) -> None:
        """Write what was gathered."""
        if self._gathered:
            self._write(memoryview(b"".join(self._gathered)))
            self._gathered, self._size = [], 0

    def __enter__(self) -> ByteCopier:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if kind is None:
                self.flush()
        finally:
            self._gathered = []
            self._mapped.release()
            os.close(self._source)

    def _copy_long(self, start: int, stop: int) -> None:
        while start < stop and self._in_kernel:
            try:
                count = os.copy_file_range(self._source, self._target, min(_AT_ONCE, stop - start), start)
            except OSError as error:
                if error.errno not in _NOT_HERE:
                    raise
                count = 0
            if not count:  # some file systems say so instead of failing
                self._in_kernel = False
                break
            start += count
            self._report(count)
        while start < stop:
            piece = os.pread(self._source, min(_GATHERED, stop - start), start)
            if not piece:
                raise DataError(f"{self._path} ends at byte {start}, where {stop} were there when it was opened; try again")
            self._write(memoryview(piece))
            start += len(piece)

    def _write(self, data: memoryview) -> None:
        while len(data):
            count = os.write(self._target, data)
            self._report(count)
            data = data[count:]

    def _report(self, count: int) -> None:
        if self._advance is not None:
            self._advance(count)
