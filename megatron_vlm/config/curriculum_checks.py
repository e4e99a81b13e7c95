"""What is wrong with the stages of a run, taken by themselves: borders, weights, ramps, learning rates, epochs."""

from __future__ import annotations

from collections.abc import Iterator

from megatron_vlm.config.curriculum import CurriculumConfig, StageConfig
from megatron_vlm.config.run import RunConfig

#: what a label can be, see StageConfig.loss_weights
MODALITIES = ("text", "caption")


def stage_path(config: RunConfig, index: int) -> str:
    """How messages name a stage."""
    return f"curriculum.stages.{index} ({config.curriculum.stages[index].name})"


def curriculum_problems(config: RunConfig) -> Iterator[str]:
    """Every reason why the stages cannot run, whatever the number of ranks; numbers must be in their ranges already."""
    schedule, stages = config.schedule, config.curriculum.stages
    if (schedule.train_tokens is None) == (schedule.train_steps is None):
        yield "schedule.train_tokens: give train_tokens, train_steps or train_epochs, one of the three"
        return
    if not stages:
        yield "curriculum.stages: at least one stage is needed"
        return
    names = [stage.name for stage in stages]
    for name in sorted({n for n in names if names.count(n) > 1}):
        yield f"curriculum.stages: two stages are called {name!r}; names must differ"
    yield from _borders(config)
    for index, stage in enumerate(stages):
        where = stage_path(config, index)
        yield from _weights(config, stage, where)
        yield from _ramp(config, index, where)
        yield from _learning_rate(config, index, where)
        yield from _loss_weights(stage, where)
    yield from _epochs(config)


def _borders(config: RunConfig) -> Iterator[str]:
    stages, ends = config.curriculum.stages, config.stage_ends()
    previous = 0
    for index, (stage, end) in enumerate(zip(stages, ends, strict=True)):
        where = stage_path(config, index)
        given = [name for name in ("until", "until_tokens", "until_steps") if getattr(stage, name) is not None]
        if len(given) > 1:
            yield f"{where}: give one of until, until_tokens and until_steps, not {' and '.join(given)}"
        if index and end <= previous and not (end == previous == 0):
            yield f"{where}: ends at step {end}, not after the stage before it (step {previous}); {_later(config, index)}"
        previous = end
    if previous < config.total_steps:
        last = stages[-1]
        remedy = next((n for n in ("until_tokens", "until_steps") if getattr(last, n) is not None), None)
        where = stage_path(config, len(stages) - 1)
        yield (
            f"{where}: the last stage ends at step {previous} of {config.total_steps}; leave its "
            f"{f'{remedy} out' if remedy else 'until out or set it to 1.0'}"
        )


def _later(config: RunConfig, index: int) -> str:
    """What would make stage `index` end after the one before it."""
    previous, stage = config.stage_ends()[index - 1], config.curriculum.stages[index]
    if previous >= config.total_steps:
        return f"the run ends there: let stage {index - 1} end before"
    if stage.until_tokens is not None:
        return f"until_tokens must be at least {config.tokens_before(previous) + 1}"
    if stage.until_steps is not None:
        return f"until_steps must be at least {previous + 1}"
    if config.schedule.train_tokens is not None:
        least = min(
            1.0, (config.tokens_before(previous) + config.segments[-1].tokens_per_step) / config.schedule.train_tokens
        )
    else:
        least = (previous + 1) / config.total_steps
    return f"until must be at least {least:.9g}"


def _weights(config: RunConfig, stage: StageConfig, where: str) -> Iterator[str]:
    known = ", ".join(config.data.sources) or "none"
    if not stage.sources:
        yield f"{where}.sources: name at least one of data.sources: {', '.join(config.data.sources) or '(none given)'}"
    for field, weights in (("sources", stage.sources), ("sources_from", stage.sources_from)):
        for source in weights:
            if source not in config.data.sources:
                yield f"{where}.{field}.{source}: not one of data.sources ({known}); add --data.sources.{source} PREFIX"
        total = sum(weights.values())
        if weights and not total:
            yield f"{where}.{field}: the weights sum to 0; give one above 0"
        if stage.measure == "visual_tokens" and total > 1 + 1e-6:
            yield f"{where}.{field}: with measure visual_tokens the weights are shares and sum to 1; they sum to {total:.9g}"


def _ramp(config: RunConfig, index: int, where: str) -> Iterator[str]:
    curriculum: CurriculumConfig = config.curriculum
    stage = curriculum.stages[index]
    if stage.ramp == "constant":
        if stage.sources_from:
            yield f"{where}.sources_from: has no effect with ramp constant; set ramp to linear or cosine, or leave it out"
        return
    start = curriculum.ramp_start(index)
    if not start:
        yield (
            f"{where}.ramp: {stage.ramp}, and there is nothing to ramp from: the first stage has none before it. Give "
            f"sources_from, such as {{{next(iter(stage.sources), 'text')}: 1.0}}, or set ramp to constant"
        )
        return
    if stage.sources_from or not index:
        return
    before = curriculum.stages[index - 1]
    mixed = sum(weight > 0 for weight in start.values()) > 1
    if before.measure != stage.measure and mixed:
        yield (
            f"{where}.sources_from: the ramp would begin with the weights of stage {index - 1}, which count "
            f"{before.measure}, and this stage's count {stage.measure}; give sources_from in {stage.measure}"
        )
    elif stage.measure == "visual_tokens" and sum(start.values()) > 1 + 1e-6:
        yield (
            f"{where}.sources_from: the ramp would begin with the weights of stage {index - 1}, which sum to "
            f"{sum(start.values()):.9g}; with measure visual_tokens they are shares and sum to 1: give sources_from"
        )


def _learning_rate(config: RunConfig, index: int, where: str) -> Iterator[str]:
    stage, schedule, ends = config.curriculum.stages[index], config.schedule, config.stage_ends()
    policy, start = stage.lr_policy, ends[index - 1] if index else 0
    rises, falls = policy in ("rewarm", "restart"), policy in ("rewarm", "restart", "cooldown")
    if policy == "rewarm" and stage.rewarm_steps < 1:
        yield f"{where}.rewarm_steps: {stage.rewarm_steps}, but lr_policy rewarm needs at least 1 step"
    end = config.total_steps if policy == "rewarm" else ends[index]
    if rises and start < end and stage.rewarm_steps > end - start:
        what = "the run has left" if policy == "rewarm" else "the stage has"
        yield (f"{where}.rewarm_steps: {stage.rewarm_steps} steps of warm-up are more than {what}; at most {end - start}")
    if not rises:
        for name, unset in (("rewarm_steps", 0), ("rewarm_lr", None)):
            if getattr(stage, name) != unset:
                yield f"{where}.{name}: has no effect with lr_policy {policy}; set lr_policy to rewarm or restart"
    if not falls:
        for name in ("min_lr", "lr_decay"):
            if getattr(stage, name) is not None:
                yield f"{where}.{name}: has no effect with lr_policy {policy}; set lr_policy to rewarm, restart or cooldown"
    peak = schedule.lr if stage.rewarm_lr is None else stage.rewarm_lr
    if stage.min_lr is not None and stage.min_lr > peak:
        yield f"{where}.min_lr: {stage.min_lr:g} must be from 0 to the peak {peak:g}"
    elif rises and stage.min_lr is None and schedule.min_lr > peak:
        yield f"{where}.rewarm_lr: {peak:g} is below schedule.min_lr, where it would decay to; at least {schedule.min_lr:g}"
    if policy == "cooldown" and stage.lr_decay == "constant":
        yield f"{where}.lr_decay: constant does not cool down; set it to linear, or lr_policy to constant"


def _loss_weights(stage: StageConfig, where: str) -> Iterator[str]:
    for modality in stage.loss_weights:
        if modality not in MODALITIES:
            yield f"{where}.loss_weights.{modality}: modalities are {' and '.join(MODALITIES)}"
    if all(stage.loss_weights.get(modality, 1.0) == 0 for modality in MODALITIES):
        yield f"{where}.loss_weights: nothing is learnt with every weight at 0; give one above 0"


def _epochs(config: RunConfig) -> Iterator[str]:
    for source in config.curriculum.max_epochs:
        where = f"curriculum.max_epochs.{source}"
        if source not in config.data.sources:
            known = ", ".join(config.data.sources) or "none"
            yield f"{where}: not one of data.sources ({known}); leave it out, or add --data.sources.{source} PREFIX"
