"""The learning rate of a step: a pure function of the configuration, so that a resumed run needs no scheduler state."""

from __future__ import annotations

import math
from collections.abc import Callable

from megatron_vlm.config.curriculum import StageConfig
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

    The run's own law is a linear warm-up to `schedule.lr` and a decay to `schedule.min_lr` at its end, or at
    `schedule.decay_steps`. A stage may go on
    along the law before it (`continue`), warm up again from where that law stands and decay anew to the end of the run
    (`rewarm`), run a whole warm-up and decay of its own (`restart`), hold the rate at which it begins (`constant`), or fall
    to the minimum at its end (`cooldown`). A law holds until a later stage sets another; past its end it stays at its last
    value.

    Warm-ups count steps. Whatever falls goes by positions: where batch or length change, as fast for each token trained on.
    """
    schedule, total = config.schedule, config.total_steps
    before = config.tokens_before

    def done(start: int, end: int, step: int) -> float:
        """How much of the positions of steps start .. end lie before `step`: below 0 to above 1."""
        return (before(step) - before(start)) / max(1, before(end) - before(start))

    def base(step: int) -> float:
        warmup = schedule.warmup_steps
        if step < warmup:
            return schedule.lr * (step + 1) / warmup
        share = done(warmup, schedule.decay_steps or total, step)
        return _decayed(schedule.decay, schedule.wsd_decay_share, schedule.lr, schedule.min_lr, share)

    def warmed(stage: StageConfig, start: int, end: int, first: float) -> Law:
        """Rise from `first` at `start` to the peak, then decay until `end`."""
        steps = stage.rewarm_steps
        peak = schedule.lr if stage.rewarm_lr is None else stage.rewarm_lr
        low = schedule.min_lr if stage.min_lr is None else stage.min_lr
        decay = stage.lr_decay or schedule.decay

        def law(step: int) -> float:
            if step < start + steps:
                return first + (peak - first) * (step - start + 1) / steps
            return _decayed(decay, schedule.wsd_decay_share, peak, low, done(start + steps, end, step))

        return law

    def cooldown(stage: StageConfig, start: int, end: int, first: float) -> Law:
        """Fall from `first`, the rate of the step before `start`; the last step has the minimum."""
        low = schedule.min_lr if stage.min_lr is None else stage.min_lr
        decay = stage.lr_decay or "linear"

        def law(step: int) -> float:
            return _decayed(decay, schedule.wsd_decay_share, first, low, done(start, end, min(step + 1, end)))

        return law

    def held(law: Law, step: int) -> Law:
        rate = law(step)
        return lambda now: rate if now >= step else law(now)

    laws: list[tuple[int, Law]] = []
    current: Law = base
    start = 0
    for stage, end in zip(config.curriculum.stages, config.stage_ends(), strict=True):
        stands = current(max(start - 1, 0))
        if stage.lr_policy == "rewarm":
            current = warmed(stage, start, total, stands if start else 0.0)
        elif stage.lr_policy == "restart":
            current = warmed(stage, start, end, 0.0)
        elif stage.lr_policy == "cooldown":
            current = cooldown(stage, start, end, stands)
        elif stage.lr_policy == "constant":
            # the run's own warm-up is finished first
            current = held(current, max(start, schedule.warmup_steps) if current is base else start)
        laws.append((end, current))
        start = end

    def rate(step: int) -> float:
        for end, law in laws:
            if step < end:
                return law(step)
        return laws[-1][1](step)

    return rate
