"""The learning rate of a step: a pure function of the configuration, so that a resumed run needs no scheduler state."""

from __future__ import annotations

import math
from collections.abc import Callable

from megatron_vlm.config.run import RunConfig

Law = Callable[[int], float]


def _decayed(kind: str, wsd_share: float, peak: float, low: float, progress: float) -> float:
    """`progress` 0 to 1 over the part after the warm-up."""
    progress = min(max(progress, 0.0), 1.0)
    if kind == "cosine":
        return low + (peak - low) * 0.5 * (1 + math.cos(math.pi * progress))
    if kind == "linear":
        return peak + (low - peak) * progress
    if kind == "wsd":
        return peak if progress <= 1 - wsd_share else peak + (low - peak) * (progress - 1 + wsd_share) / wsd_share
    return peak


def learning_rate_law(config: RunConfig) -> Law:
    """step (from 0) -> learning rate of its update.

    The run's own law is a linear warm-up to `schedule.lr` and a decay to `schedule.min_lr` at its end. A stage may go on
    along the law before it (`continue`), warm up again from where that law stands and decay anew (`rewarm`), or fall in a
    straight line to the minimum at its end and stay there (`cooldown`).
    """
    schedule, total = config.schedule, config.total_steps

    def base(step: int) -> float:
        if step < schedule.warmup_steps:
            return schedule.lr * (step + 1) / schedule.warmup_steps
        progress = (step - schedule.warmup_steps) / max(1, total - schedule.warmup_steps)
        return _decayed(schedule.decay, schedule.wsd_decay_share, schedule.lr, schedule.min_lr, progress)

    def rewarm(start: int, steps: int, before: float, peak: float) -> Law:
        def law(step: int) -> float:
            if step < start + steps:
                return before + (peak - before) * (step - start + 1) / steps
            progress = (step - start - steps) / max(1, total - start - steps)
            return _decayed(schedule.decay, schedule.wsd_decay_share, peak, schedule.min_lr, progress)

        return law

    def cooldown(start: int, end: int, before: float) -> Law:
        def law(step: int) -> float:
            progress = min(1.0, (step - start + 1) / max(1, end - start))
            return before + (schedule.min_lr - before) * progress

        return law

    laws: list[tuple[int, Law]] = []
    current: Law = base
    start = 0
    for stage, end in zip(config.curriculum.stages, config.stage_ends(), strict=True):
        before = current(max(start - 1, 0))
        if stage.lr_policy == "rewarm":
            peak = schedule.lr if stage.rewarm_lr is None else stage.rewarm_lr
            current = rewarm(start, stage.rewarm_steps, before if start else 0.0, peak)
        elif stage.lr_policy == "cooldown":
            current = cooldown(start, end, before)
        laws.append((end, current))
        start = end

    def rate(step: int) -> float:
        for end, law in laws:
            if step < end:
                return law(step)
        return laws[-1][1](step)

    return rate
