"""Memory that a rank fills with what is to be saved and its writer process reads: one copy, kept for the next save."""

from __future__ import annotations

import io
import mmap
import os
from typing import Any

_PAGE = 4096


class SharedMemory:
    """Grows as it is written; keeps its pages, since fresh ones cost more than the copy into them.

    Anonymous (memfd), so it is gone with the processes, whatever kills them, and /dev/shm need not be large. `descriptor`
    can be inherited. Raises OSError where the kernel has none to give.
    """

    def __init__(self) -> None:
        self.descriptor = os.memfd_create("checkpoint")
        self.size = 0  # bytes that can be used
        self._map: mmap.mmap | None = None

    def reserve(self, size: int) -> None:
        """Make room for at least `size` bytes in all."""
        if size <= self.size:
            return
        size = -(-size // _PAGE) * _PAGE
        if self._map is None:
            os.ftruncate(self.descriptor, size)
            self._map = mmap.mmap(self.descriptor, size)
        else:
            self._map.resize(size)  # the descriptor's file too
        self.size = size

    def put(self, at: int, data: Any) -> int:
        """Copy `data` (any buffer) to the bytes from `at`; the number of bytes."""
        with memoryview(data) as given, given.cast("B") as piece:
            if at + len(piece) > self.size:
                self.reserve(max(at + len(piece), self.size + self.size // 4))
            assert self._map is not None
            self._map[at : at + len(piece)] = piece
            return len(piece)

    def read(self, at: int, size: int) -> bytes:
        """A copy of `size` bytes from `at`."""
        return b"" if self._map is None else self._map[at : at + size]

    def close(self) -> None:
        if self._map is not None:
            self._map.close()
            self._map = None
        os.close(self.descriptor)


class MemoryFile(io.RawIOBase):
    """A file that is written, from its start to its end, into shared memory from `first` on."""

    def __init__(self, memory: SharedMemory, first: int) -> None:
        super().__init__()
        self.memory, self.first, self.length = memory, first, 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        written = self.memory.put(self.first + self.length, data)
        self.length += written
        return written

    def tell(self) -> int:
        return self.length

    @property
    def next_page(self) -> int:
        """Where a file after this one begins."""
        return -(-(self.first + self.length) // _PAGE) * _PAGE
