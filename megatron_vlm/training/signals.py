"""SIGTERM and SIGUSR1 ask for a checkpoint and an end at the next step border, on all ranks alike."""

from __future__ import annotations

import signal
from types import FrameType

#: exit code of a run that was asked to stop and saved: EX_TEMPFAIL, "try again later"
EXIT_SAVED_ON_SIGNAL = 75


class StopRequest:
    """Remembers the first signal. The loop asks all ranks at a step's end whether anyone got one."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._old = {s: signal.signal(s, self._remember) for s in (signal.SIGTERM, signal.SIGUSR1)}

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.received = self.received or number

    def restore(self) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
