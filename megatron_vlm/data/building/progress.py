"""How far a run is: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from megatron_vlm.data.building.local_counter import LocalCounter

REFRESH_SECONDS = 0.2
LOG_SECONDS = 30.0


class Progress:
    """Bytes of the sources read, documents and tokens made: what workers add to `shared`, with rates and the time left.

    With `show`, draws a bar on standard error where that is a terminal, and otherwise prints a line every half minute.
    """

    def __init__(self, total: int, show: bool) -> None:
        self.shared: Any = LocalCounter()
        self._show, self._bar_on = show, show and sys.stderr.isatty()
        self._total = total
        self._bar = self._new_bar(total)
        self._start = self._said = time.monotonic()
        self._before = (0, 0, 0)

    def share(self, shared: Any) -> None:
        """Count by `shared` from now on: one that processes share."""
        self.shared = shared

    def already(self, size: int, documents: int, tokens: int) -> None:
        """What an earlier run has done: part of the whole, but not of the rate."""
        self._before = (self._before[0] + size, self._before[1] + documents, self._before[2] + tokens)
        if self._bar is not None:
            self._bar.initial = self._bar.n = self._before[0]

    def draw(self) -> None:
        now = time.monotonic()
        if not self._show or (not self._bar_on and now - self._said < LOG_SECONDS):
            return
        size, documents, tokens = self.shared[0], self.shared[1], self.shared[2]
        seconds = max(now - self._start, 1e-3)
        rates = f"{documents / seconds:,.0f} documents/s, {tokens / seconds:,.0f} tokens/s"
        done = self._before[0] + size
        if self._bar is not None:
            self._bar.set_postfix_str(rates, refresh=False)
            self._bar.update(max(done - self._bar.n, 0))
            return
        self._said = now
        left = (self._total - done) * seconds / size if size else float("nan")
        share = done / self._total if self._total else 1.0
        line = f"{share:.1%} of {self._total / 1e6:,.0f} MB, {size / seconds / 1e6:,.1f} MB/s, {rates}, {left:,.0f} s left"
        print(line, file=sys.stderr, flush=True)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Draw from a thread, for work that is done in this one."""
        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(REFRESH_SECONDS):
                self.draw()

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def writing(self, total: int) -> None:
        """The parts are made; `total` bytes are to be put together."""
        self.draw()
        self._close()
        self._bar = self._new_bar(total, desc="writing")

    def wrote(self, size: int) -> None:
        if self._bar is not None:
            self._bar.update(size)

    def _new_bar(self, total: int, **more: Any) -> Any:
        """A bar, or None where none is to be seen."""
        if not self._bar_on:
            return None
        from tqdm import tqdm

        tqdm.monitor_interval = 0  # its thread would forbid a fork
        return tqdm(total=total, unit="B", unit_scale=True, dynamic_ncols=True, **more)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()
