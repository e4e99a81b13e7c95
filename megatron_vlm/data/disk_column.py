"""Columns of numbers that grow on disk rather than in memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

BUFFER_BYTES = 1 << 20


class DiskColumn:
    """Numbers of one dtype, appended in blocks and read back in order; at most a megabyte is held.

    The file is this object's own: `discard` removes it.
    """

    def __init__(self, path: Path, dtype: npt.DTypeLike) -> None:
        self.path, self.dtype = path, np.dtype(dtype)
        self.count = 0
        self._stream = open(path, "w+b", buffering=BUFFER_BYTES)  # noqa: SIM115  closed by discard

    def extend(self, values: npt.NDArray[Any]) -> None:
        self._stream.write(np.ascontiguousarray(values, dtype=self.dtype).data)
        self.count += len(values)

    def append(self, value: int) -> None:
        self._stream.write(self.dtype.type(value).tobytes())
        self.count += 1

    def blocks(self) -> Iterator[npt.NDArray[Any]]:
        """What was appended, in arrays of about a megabyte."""
        if not self._stream.closed:
            self._stream.flush()
        with open(self.path, "rb") as stream:
            while chunk := stream.read(BUFFER_BYTES):
                yield np.frombuffer(chunk, self.dtype)

    def close(self) -> None:
        """Nothing more is appended; it can still be read."""
        self._stream.close()

    def discard(self) -> None:
        with suppress(OSError):  # of a full disk: what is not written is not missed
            self._stream.close()
        self.path.unlink(missing_ok=True)
