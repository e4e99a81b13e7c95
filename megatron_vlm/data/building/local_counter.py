"""Three counters with a lock, as `multiprocessing.Array("q", 3)` has them, within one process."""

from __future__ import annotations

import threading


class LocalCounter(list[int]):
    def __init__(self) -> None:
        super().__init__([0, 0, 0])
        self._lock = threading.Lock()

    def get_lock(self) -> threading.Lock:
        return self._lock
