"""Which steps are bad: a loss or a gradient that is no finite number, or a loss far above the last ones."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from typing import Any

from megatron_vlm.config.faults import FaultConfig

#: (loss, gradient norm) -> what is wrong with the step, or None
Judge = Callable[[float, float], str | None]

#: the median absolute deviation of normal numbers is their standard deviation divided by this
_NORMAL_MAD = 1.4826


def not_finite(loss: float, grad_norm: float) -> str | None:
    """The fault of a step whose loss or gradient is NaN or infinite."""
    if not math.isfinite(loss):
        return f"the loss is {loss}"
    if not math.isfinite(grad_norm):
        return f"the gradient norm is {grad_norm}"
    return None


class BadStepDetector:
    """Judges steps by the good ones before them. A pure function of their losses, so that every rank decides alike.

    The deviation is taken from the median, which single outliers do not move: a spike that is just below the bound
    does not raise the bound. A stage begins with an empty history, for there the loss may jump by right.
    """

    def __init__(self, config: FaultConfig) -> None:
        self.config = config
        self.stage = -1
        self.losses: list[float] = []
        #: numbers of the last bad steps, oldest first; only as many as decide whether there are too many
        self.bad: list[int] = []

    @property
    def bound(self) -> float:
        """A loss above it is a spike; infinite while the history is short or none is looked for."""
        if not self.config.spike_deviations or len(self.losses) < self.config.spike_history:
            return math.inf
        median = statistics.median(self.losses)
        deviation = _NORMAL_MAD * statistics.median(abs(loss - median) for loss in self.losses)
        return median + max(self.config.spike_deviations * deviation, self.config.spike_rise)

    def judge(self, loss: float, grad_norm: float) -> str | None:
        """What is wrong with a step of this loss (nats a token) and gradient norm, or None. Changes nothing."""
        fault = not_finite(loss, grad_norm)
        if fault is None and loss > self.bound:
            fault = f"the loss is a spike: {loss:.4f}, above {self.bound:.4f} from the last {len(self.losses)} good steps"
        return fault

    def enter_stage(self, stage: int) -> None:
        if stage != self.stage:
            self.stage, self.losses = stage, []

    def count_good(self, loss: float) -> None:
        self.losses = [*self.losses, loss][-self.config.spike_window :]

    def count_bad(self, step: int) -> None:
        self.bad = [*self.bad, step][-(self.config.max_bad_steps + 1) :]

    def too_many(self, step: int) -> bool:
        """Whether more than `max_bad_steps` of the last `bad_step_window` steps, `step` included, were bad."""
        return sum(bad > step - self.config.bad_step_window for bad in self.bad) > self.config.max_bad_steps

    def state(self) -> dict[str, Any]:
        """Plain numbers and lists, for a checkpoint."""
        return {"stage": self.stage, "losses": list(self.losses), "bad": list(self.bad)}

    def load(self, state: dict[str, Any]) -> None:
        self.stage = int(state["stage"])
        self.losses = [float(loss) for loss in state["losses"]][-self.config.spike_window :]
        self.bad = [int(step) for step in state["bad"]]

    def load_history(self, state: dict[str, Any]) -> None:
        """The losses alone, where parameters are taken back: what was bad since is not forgotten."""
        bad = self.bad
        self.load(state)
        self.bad = bad
