"""Where the main thread of a rank is, for the thread that watches it."""

from __future__ import annotations

import sys
import threading
import time
import traceback
from dataclasses import dataclass

from megatron_vlm.config.faults import FaultConfig

#: files whose functions are what a rank waits in for others
_COLLECTIVES = ("torch/distributed/distributed_c10d.py", "megatron/core/pipeline_parallel/p2p_communication.py")


@dataclass(frozen=True)
class Mark:
    """The phase that began last: how many began before it, at which step, when (monotonic seconds), how long it may take."""

    count: int
    step: int
    phase: str
    since: float
    allowed_s: float


class Pulse:
    """The phases of the loop, in the same order on every rank: who has entered fewer is behind."""

    def __init__(self, config: FaultConfig) -> None:
        self._config = config
        self._main = threading.main_thread().ident
        self.mark = Mark(0, 0, "start", time.monotonic(), config.long_timeout_s)

    def enter(self, step: int, phase: str, long: bool = False) -> None:
        """The main thread begins `phase`. A `long` one may take `faults.long_timeout_s`."""
        allowed = self._config.long_timeout_s if long else self._config.timeout_s
        self.mark = Mark(self.mark.count + 1, step, phase, time.monotonic(), allowed)

    def stack(self) -> str:
        """The Python stack of the main thread, innermost frame last."""
        frame = sys._current_frames().get(self._main or 0)
        return "".join(traceback.format_stack(frame)) if frame is not None else ""

    def collective(self) -> str:
        """What the main thread waits in for other ranks: the outermost function of torch.distributed or of the pipeline."""
        frame, found = sys._current_frames().get(self._main or 0), ""
        while frame is not None:
            if frame.f_code.co_filename.endswith(_COLLECTIVES) and frame.f_code.co_name != "wrapper":
                found = frame.f_code.co_name
            frame = frame.f_back
        return found
