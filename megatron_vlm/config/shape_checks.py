"""What is wrong with the sizes of each stage's steps: pictures, lengths, and batches on a number of ranks."""

from __future__ import annotations

import math
from collections.abc import Iterator

from megatron_vlm.config.curriculum import StageConfig
from megatron_vlm.config.curriculum_checks import stage_path
from megatron_vlm.config.nearest import nearest_divisor, nearest_multiple
from megatron_vlm.config.run import RunConfig


def picture_problems(config: RunConfig) -> Iterator[str]:
    """Pictures that do not fold evenly into rows, or do not fit a pack, in a stage that has pictures."""
    lines: dict[str, None] = {}  # stages that share the run's sizes share its line
    for index, stage in enumerate(config.curriculum.stages):
        lines.update(dict.fromkeys(_pictures(config, index, stage)))
    yield from lines


def _pictures(config: RunConfig, index: int, stage: StageConfig) -> Iterator[str]:
    model, where = config.model, stage_path(config, index)
    patch, shuffle = model.vision.patch_size, model.projector.pixel_shuffle
    size, fold = stage.image_size or model.vision.image_size, shuffle * stage.image_pool
    grid = size // patch
    if grid < fold or grid % fold:
        if stage.image_size is not None:
            nearest = nearest_multiple(patch * fold, size)
            yield (
                f"{where}.image_size: {size} pixels are {grid} x {grid} patches, which pixel_shuffle {shuffle} x "
                f"image_pool {stage.image_pool} does not divide; nearest that does: {nearest}"
            )
        elif grid and grid % shuffle == 0:  # else the model's own sizes do not fit, which is said of them
            side = grid // shuffle
            yield (
                f"{where}.image_pool: {stage.image_pool} does not divide the {side} x {side} rows of a picture; nearest "
                f"that does: {nearest_divisor(side, stage.image_pool)}"
            )
        return
    length, rows = stage.sequence_length or config.data.sequence_length, model.image_tokens_at(size, stage.image_pool)
    text_only = {"vision", "projector"} <= set(stage.freeze) and stage.measure != "visual_tokens"
    if rows >= length and not text_only:
        own = stage.sequence_length is not None or stage.image_size is not None or stage.image_pool != 1
        remedy = "give image_pool or a smaller image_size" if own else "fold patches with model.projector.pixel_shuffle"
        yield (
            f"{where if own else 'data'}.sequence_length: {length} is shorter than the {rows} tokens of one picture and a "
            f"word; at least {rows + 1}, or {remedy}; a stage without pictures says so with freeze: [vision, projector]"
        )


def micro_batches(config: RunConfig) -> list[tuple[str, int, int]]:
    """Where it is set, packs and length of each micro-batch that a stage has; stages without their own share the run's."""
    stages, run = config.curriculum.stages, (config.schedule.micro_batch_size, config.data.sequence_length)
    own = [bool(stage.sequence_length or stage.micro_batch_size) for stage in stages]
    found = [] if own and all(own) else [("data", *run)]
    for index, stage in enumerate(stages):
        if own[index]:
            found.append((stage_path(config, index), stage.micro_batch_size or run[0], stage.sequence_length or run[1]))
    return found


def row_problems(config: RunConfig) -> Iterator[str]:
    """Micro-batches that sequence or context parallelism cannot split evenly."""
    parallel = config.parallel
    multiple, tp, cp = parallel.row_multiple, parallel.tensor_model_parallel_size, parallel.context_parallel_size
    if cp == 1:
        why = f"with sequence_parallel, {{}} must be a multiple of tensor_model_parallel_size {tp}"
    else:
        split = f" and tensor_model_parallel_size {tp}" if parallel.sequence_parallel else ""
        why = f"with context_parallel_size {cp}{split}, {{}} must be a multiple of {multiple}"
    for where, micro, length in micro_batches(config):
        if micro * length % multiple:
            reason = why.format(f"micro_batch_size * sequence_length = {micro * length}")
            yield f"{where}.sequence_length: {reason}; nearest sequence_length: {nearest_multiple(multiple, length)}"


def batch_problems(config: RunConfig, data_parallel: int) -> Iterator[str]:
    """Global batches, those of a ramp too, that do not deal out evenly to the ranks and their micro-batches."""
    lines: dict[str, None] = {}  # stages that share the run's batch share its line
    for index, stage in enumerate(config.curriculum.stages or (StageConfig(),)):
        lines.update(dict.fromkeys(_batch(config, index, stage, data_parallel)))
    yield from lines
    if config.schedule.rampup_batch_start is not None and not lines:
        yield from _ramped(config, data_parallel)


def _micro(config: RunConfig, stage: StageConfig) -> int:
    return stage.micro_batch_size or config.schedule.micro_batch_size


def _unit(config: RunConfig, stage: StageConfig, data_parallel: int) -> int:
    """What the global batch of a stage must be a multiple of."""
    parallel = config.parallel
    chunks = parallel.pipeline_model_parallel_size if parallel.virtual_pipeline_model_parallel_size > 1 else 1
    return _micro(config, stage) * data_parallel * chunks


def _batch(config: RunConfig, index: int, stage: StageConfig, dp: int) -> Iterator[str]:
    schedule, micro = config.schedule, _micro(config, stage)
    batch, unit = stage.global_batch_size or schedule.global_batch_size, _unit(config, stage, dp)
    if batch % unit == 0:
        return
    pp = config.parallel.pipeline_model_parallel_size
    if batch % (micro * dp):
        reason = f"{batch} is not a multiple of micro_batch_size x data-parallel size = {micro} x {dp} = {micro * dp}"
        nearest = "nearest that is"
    else:
        reason = (
            f"the interleaved schedule needs the {batch // (micro * dp)} micro-batches of a rank to be a multiple of "
            f"pipeline_model_parallel_size {pp}"
        )
        nearest = "nearest batch"
    others = unit // micro
    if stage.global_batch_size is not None:
        yield f"{stage_path(config, index)}.global_batch_size: {reason}; {nearest}: {nearest_multiple(unit, batch)}"
    elif stage.micro_batch_size is not None and batch % others == 0:
        yield (
            f"{stage_path(config, index)}.micro_batch_size: the global batch of {reason}; nearest micro_batch_size that "
            f"works: {nearest_divisor(batch // others, micro)}"
        )
    else:
        shared = [s for s in config.curriculum.stages if s.global_batch_size is None] or [stage]
        every = math.lcm(*(_unit(config, s, dp) for s in shared))
        yield f"schedule.global_batch_size: {reason}; {nearest}: {nearest_multiple(every, batch)}"


def _ramped(config: RunConfig, dp: int) -> Iterator[str]:
    """The batches of the ramp at the start of the run, once the full ones are known to be right."""
    schedule, stages = config.schedule, config.curriculum.stages
    start, increment = schedule.rampup_batch_start or 1, schedule.rampup_batch_increment
    if schedule.rampup_packs < 1:
        yield f"schedule.rampup_packs: {schedule.rampup_packs} packs are no ramp; at least 1"
        return
    if not config.segments:
        return  # reported elsewhere
    full = [stage.global_batch_size or schedule.global_batch_size for stage in stages]
    units = [_unit(config, stage, dp) for stage in stages]
    ramped = [
        (s.shape.stage, s.shape.global_batch_size)
        for s in config.segments
        if s.shape.global_batch_size < full[s.shape.stage]
    ]
    if not ramped:
        most = max(n - 1 - (n - 1) % unit for n, unit in zip(full, units, strict=True))
        remedy = f"at most {most}, or null for no ramp" if most > 0 else "set it to null"
        yield f"schedule.rampup_batch_start: {start} is not below the full batch of {max(full)}; {remedy}"
        return
    unit = math.lcm(*(units[stage] for stage, _ in ramped))
    least = min(full[stage] for stage, _ in ramped)
    wrong = next(((stage, batch) for stage, batch in ramped if batch % units[stage]), None)
    if wrong is None:
        return
    stage, batch = wrong
    reason = (
        f"the ramp's batch of {batch} is not a multiple of {units[stage]}, the packs that stage {stages[stage].name!r} "
        f"deals out at once on {dp} data-parallel rank(s)"
    )
    if start % unit:
        nearest = min(nearest_multiple(unit, start), (least - 1) // unit * unit)
        remedy = f"nearest that works: {nearest}" if nearest > 0 else "set it to null for no ramp"
        yield f"schedule.rampup_batch_start: {reason}; {remedy}"
    if start % unit == 0 or increment % unit:
        yield f"schedule.rampup_batch_increment: {reason}; nearest that works: {nearest_multiple(unit, increment)}"
