"""Cross-checks of a configuration against itself and the number of ranks, before anything is built.

Every problem is reported at once; each names the field, the reason and the nearest value that would work.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from megatron_vlm.config.run import RunConfig
from megatron_vlm.errors import ConfigError


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


def _nearest_divisor(n: int, wanted: int) -> int:
    return min(_divisors(n), key=lambda d: (abs(d - wanted), d))


def _nearest_multiple(of: int, wanted: int) -> int:
    return max(of, round(wanted / of) * of)


def _positive(config: RunConfig) -> Iterator[str]:
    for section, names in {
        "model.language": (
            "num_layers",
            "hidden_size",
            "num_attention_heads",
            "num_query_groups",
            "ffn_hidden_size",
            "vocab_pad_multiple",
        ),
        "model.vision": (
            "image_size",
            "patch_size",
            "num_layers",
            "hidden_size",
            "num_attention_heads",
            "ffn_hidden_size",
        ),
        "model.projector": ("hidden_size", "pixel_shuffle"),
        "data": ("sequence_length", "min_piece", "lookahead"),
        "parallel": (
            "tensor_model_parallel_size",
            "pipeline_model_parallel_size",
            "num_layers_in_first_pipeline_stage",
            "num_layers_in_last_pipeline_stage",
            "virtual_pipeline_model_parallel_size",
            "timeout_s",
        ),
        "schedule": ("micro_batch_size", "global_batch_size"),
    }.items():
        node: object = config
        for part in section.split("."):
            node = getattr(node, part)
        for name in names:
            value = getattr(node, name)
            if value is not None and value < 1:
                yield f"{section}.{name}: {value} must be at least 1"


def _model(config: RunConfig) -> Iterator[str]:
    language, vision = config.model.language, config.model.vision
    shuffle = config.model.projector.pixel_shuffle
    heads = language.num_attention_heads
    if language.hidden_size % 2:
        yield (
            f"model.language.hidden_size: {language.hidden_size} is odd, and rotary positions need heads of an even size; "
            f"nearest: {language.hidden_size + 1}"
        )
    elif language.hidden_size % heads or language.head_dim % 2:
        # heads of an even size are the divisors of half the width
        nearest = _nearest_divisor(language.hidden_size // 2, heads)
        yield (
            f"model.language.num_attention_heads: {heads} does not divide hidden_size {language.hidden_size} into heads of "
            f"an even size, as rotary positions need; nearest that does: {nearest}"
        )
    if vision.hidden_size % vision.num_attention_heads:
        yield (
            f"model.vision.num_attention_heads: {vision.num_attention_heads} does not divide hidden_size "
            f"{vision.hidden_size}; nearest that does: {_nearest_divisor(vision.hidden_size, vision.num_attention_heads)}"
        )
    if language.num_attention_heads % language.query_groups:
        yield (
            f"model.language.num_query_groups: {language.query_groups} does not divide the "
            f"{language.num_attention_heads} attention heads; nearest that does: "
            f"{_nearest_divisor(language.num_attention_heads, language.query_groups)}"
        )
    if vision.patch_size > vision.image_size:
        most = max(1, vision.image_size // shuffle)
        yield f"model.vision.patch_size: {vision.patch_size} is larger than image_size {vision.image_size}; at most {most}"
    elif vision.grid % shuffle:
        yield (
            f"model.projector.pixel_shuffle: {shuffle} does not divide the {vision.grid} x {vision.grid} patches of a "
            f"picture; nearest that does: {_nearest_divisor(vision.grid, shuffle)}"
        )
    if vision.register_tokens and vision.kind != "dinov2":
        yield f"model.vision.register_tokens: only dinov2 has register tokens, kind is {vision.kind}; set it to 0"
    if not 0 <= vision.skip_last_layers < vision.num_layers:
        yield (
            f"model.vision.skip_last_layers: {vision.skip_last_layers} must be from 0 to {vision.num_layers - 1} "
            f"with {vision.num_layers} layers"
        )


def _uneven_stages(ends: list[tuple[str, int]], layers: int, pp: int, vp: int) -> Iterator[str]:
    name, first = ends[0]
    if pp < 2 or vp > 1:
        yield (
            f"{name}: stages of unlike length need pipeline_model_parallel_size of at least 2 and plain 1F1B "
            f"(virtual_pipeline_model_parallel_size 1), not {pp} and {vp}; leave it out"
        )
        return
    others, left = pp - len(ends), layers - sum(given for _, given in ends)
    if not _spread(left, others):
        fixed = layers - left - first
        nearest = min(
            (n for n in range(1, layers) if _spread(layers - fixed - n, others)), key=lambda n: abs(n - first), default=0
        )
        remedy = f"nearest that does: {nearest}" if nearest else "leave it out"
        yield (
            f"{name}: {first} leaves {left} of model.language.num_layers {layers} to the {others} other stages, which does "
            f"not go evenly; {remedy}"
        )


def _spread(layers: int, stages: int) -> bool:
    return layers == 0 if not stages else layers >= stages and layers % stages == 0


def _layout(config: RunConfig, world_size: int) -> Iterator[str]:
    language, vision, parallel = config.model.language, config.model.vision, config.parallel
    tp, pp = parallel.tensor_model_parallel_size, parallel.pipeline_model_parallel_size
    vp = parallel.virtual_pipeline_model_parallel_size
    where = "parallel.tensor_model_parallel_size"
    split = {
        "model.language.num_attention_heads": language.num_attention_heads,
        "model.language.num_query_groups": language.query_groups,
        "model.language.ffn_hidden_size": language.ffn_width,
        "model.vision.num_attention_heads": vision.num_attention_heads,
        "model.vision.ffn_hidden_size": vision.ffn_width,
        "model.language.vocab_pad_multiple": language.vocab_pad_multiple,
        "model.projector.hidden_size": config.model.projector.hidden_size or language.hidden_size,
    }
    nearest = _nearest_divisor(math.gcd(*split.values()), tp)  # one value that suits all of them
    for name, value in split.items():
        if value % tp:
            yield f"{where}: {tp} does not divide {name} {value}; nearest that does: {nearest}"
    ends = [
        (f"parallel.num_layers_in_{end}_pipeline_stage", layers)
        for end, layers in (
            ("first", parallel.num_layers_in_first_pipeline_stage),
            ("last", parallel.num_layers_in_last_pipeline_stage),
        )
        if layers is not None
    ]
    if ends:
        yield from _uneven_stages(ends, language.num_layers, pp, vp)
    elif language.num_layers % (pp * vp):
        chunks = _nearest_divisor(language.num_layers, pp * vp)
        sizes = f"pipeline x virtual = {pp} x {vp} = {pp * vp}"
        yield (
            f"parallel.pipeline_model_parallel_size: {sizes} does not divide model.language.num_layers "
            f"{language.num_layers}; nearest number of chunks that does: {chunks}, or "
            f"{_nearest_multiple(pp * vp, language.num_layers)} layers"
        )
    if vp > 1 and pp < 2:
        yield (
            "parallel.virtual_pipeline_model_parallel_size: an interleaved schedule needs "
            "pipeline_model_parallel_size of at least 2; set it to 1"
        )
    row = config.schedule.micro_batch_size * config.data.sequence_length
    if parallel.sequence_parallel and row % tp:
        yield (
            f"data.sequence_length: with sequence_parallel, micro_batch_size * sequence_length = {row} must be a multiple "
            f"of tensor_model_parallel_size {tp}; nearest sequence_length: "
            f"{_nearest_multiple(tp, config.data.sequence_length)}"
        )
    if parallel.sequence_parallel and tp == 1:
        yield "parallel.sequence_parallel: needs tensor_model_parallel_size above 1; set it to false"
    if parallel.overlap_param_gather and not parallel.use_distributed_optimizer:
        yield "parallel.overlap_param_gather: needs use_distributed_optimizer: true"
    if parallel.overlap_param_gather and not parallel.overlap_grad_reduce:
        yield "parallel.overlap_param_gather: needs overlap_grad_reduce: true"
    if world_size % (tp * pp):
        yield (
            f"parallel: tensor x pipeline = {tp} x {pp} = {tp * pp} does not divide the {world_size} ranks that were "
            f"started; start a multiple of {tp * pp} (torchrun --nproc-per-node)"
        )
        return
    dp = world_size // (tp * pp)
    batch, micro = config.schedule.global_batch_size, config.schedule.micro_batch_size
    nearest_batch = _nearest_multiple(micro * dp * (pp if vp > 1 else 1), batch)
    if batch % (micro * dp):
        yield (
            f"schedule.global_batch_size: {batch} is not a multiple of micro_batch_size x data-parallel size = "
            f"{micro} x {dp} = {micro * dp}; nearest that is: {nearest_batch}"
        )
    elif vp > 1 and (batch // (micro * dp)) % pp:
        yield (
            f"schedule.global_batch_size: the interleaved schedule needs the {batch // (micro * dp)} micro-batches of a "
            f"rank to be a multiple of pipeline_model_parallel_size {pp}; nearest batch: {nearest_batch}"
        )


def _curriculum(config: RunConfig) -> Iterator[str]:
    schedule, stages = config.schedule, config.curriculum.stages
    if (schedule.train_tokens is None) == (schedule.train_steps is None):
        yield "schedule.train_tokens: give train_tokens or train_steps, one of the two"
        return
    if config.total_steps < 1:
        yield "schedule.train_tokens: the run has no step; give at least one global batch"
        return
    if not stages:
        yield "curriculum.stages: at least one stage is needed"
        return
    names = [stage.name for stage in stages]
    for name in sorted({n for n in names if names.count(n) > 1}):
        yield f"curriculum.stages: two stages are called {name!r}; names must differ"
    previous = 0
    for index, (stage, end) in enumerate(zip(stages, config.stage_ends(), strict=True)):
        where = f"curriculum.stages.{index} ({stage.name})"
        if stage.until is not None and stage.until_tokens is not None:
            yield f"{where}: give until or until_tokens, not both"
        if stage.until is not None and not 0 < stage.until <= 1:
            yield f"{where}.until: {stage.until} is a share of the run, above 0 and at most 1"
        if index and end <= previous and not (end == previous == 0):
            yield f"{where}: ends at step {end}, not after the stage before it (step {previous}); {_later(config, index)}"
        previous = end
        if not stage.sources:
            yield f"{where}.sources: name at least one of data.sources: {', '.join(config.data.sources) or '(none given)'}"
        for source, weight in stage.sources.items():
            if source not in config.data.sources:
                known = ", ".join(config.data.sources) or "none"
                yield f"{where}.sources.{source}: not one of data.sources ({known}); add --data.sources.{source} PREFIX"
            if weight < 0:
                yield f"{where}.sources.{source}: weight {weight} is negative; at least 0"
        if stage.sources and sum(stage.sources.values()) <= 0:
            yield f"{where}.sources: the weights sum to 0; give one above 0"
        if stage.measure == "visual_tokens" and sum(stage.sources.values()) > 1 + 1e-6:
            total = sum(stage.sources.values())
            yield f"{where}.sources: with measure visual_tokens the weights are shares and sum to 1; they sum to {total:.9g}"
        if stage.lr_policy == "rewarm" and stage.rewarm_steps < 1:
            yield f"{where}.rewarm_steps: {stage.rewarm_steps}, but lr_policy rewarm needs at least 1 step"
    if stages and config.stage_ends()[-1] < config.total_steps:
        remedy = "until_tokens out" if stages[-1].until_tokens is not None else "until out or set it to 1.0"
        yield (
            f"curriculum.stages.{len(stages) - 1} ({stages[-1].name}): the last stage ends at step {previous} of "
            f"{config.total_steps}; leave its {remedy}"
        )


def _later(config: RunConfig, index: int) -> str:
    """What would make stage `index` end after the one before it."""
    previous = config.stage_ends()[index - 1]
    if previous >= config.total_steps:
        return f"the run ends there: let stage {index - 1} end before"
    if config.curriculum.stages[index].until_tokens is not None:
        return f"until_tokens must be at least {config.tokens_before(previous) + 1}"
    return f"until must be at least {(previous + 1) / config.total_steps:.6g}"


def _data(config: RunConfig) -> Iterator[str]:
    need = config.model.image_tokens + 1
    if config.data.sequence_length < need:
        yield (
            f"data.sequence_length: {config.data.sequence_length} is shorter than the {need - 1} tokens of one picture and "
            f"a word; at least {need}, or fold patches with model.projector.pixel_shuffle"
        )
    if not config.data.tokenizer:
        yield "data.tokenizer: give the tokenizer that the datasets were made with (--data.tokenizer PATH)"


def _checkpoint(config: RunConfig) -> Iterator[str]:
    settings = config.checkpoint
    for name in ("save_interval", "keep_last", "keep_every"):
        if getattr(settings, name) < 0:
            yield f"checkpoint.{name}: {getattr(settings, name)} must be at least 0"
    if settings.keep_every and not settings.keep_last:
        yield (
            f"checkpoint.keep_every: {settings.keep_every} keeps some besides the newest, and keep_last 0 keeps all; set "
            f"keep_last to 1 or more"
        )
    if settings.start_from is not None and settings.resume not in ("auto", "none"):
        yield (
            f"checkpoint.start_from: a run begins with {settings.start_from} or goes on from {settings.resume}, not both; "
            f"with resume auto it begins there once and then goes on from its own checkpoints"
        )
    if settings.start_with != "weights" and settings.start_from is None:
        yield f"checkpoint.start_with: {settings.start_with} of which checkpoint? give start_from, or leave start_with out"


def problems(config: RunConfig, world_size: int) -> list[str]:
    """Every reason why this configuration cannot run on `world_size` ranks; empty when it can."""
    found = list(_positive(config))
    if found:
        return found
    return [
        *_model(config),
        *_layout(config, world_size),
        *_curriculum(config),
        *_data(config),
        *_schedule(config),
        *_checkpoint(config),
    ]


def _schedule(config: RunConfig) -> Iterator[str]:
    schedule = config.schedule
    if schedule.warmup_steps >= max(config.total_steps, 1) and schedule.warmup_steps > 0:
        yield (
            f"schedule.warmup_steps: {schedule.warmup_steps} leaves no step after the warm-up in a run of "
            f"{config.total_steps}; at most {max(config.total_steps - 1, 0)}"
        )
    if not (schedule.lr > 0 and math.isfinite(schedule.lr)):
        yield f"schedule.lr: {schedule.lr:g} must be above 0 and finite"
    elif not 0 <= schedule.min_lr <= schedule.lr:
        yield f"schedule.min_lr: {schedule.min_lr:g} must be from 0 to schedule.lr {schedule.lr:g}"
    if schedule.warmup_steps < 0:
        yield f"schedule.warmup_steps: {schedule.warmup_steps} must be at least 0"
    if not 0 < schedule.wsd_decay_share <= 1:
        yield f"schedule.wsd_decay_share: {schedule.wsd_decay_share} is a share of the run, above 0 and at most 1"
    for module in config.optimizer.lr_mult:
        if module not in ("language", "vision", "projector"):
            yield f"optimizer.lr_mult.{module}: modules are language, vision and projector"


def layout_problems(config: RunConfig, world_size: int) -> list[str]:
    """Reasons why the model cannot be laid out on `world_size` ranks for evaluation, where batches do not matter."""
    return [line for line in _layout(config, world_size) if not line.startswith("schedule.")]


def check(config: RunConfig, world_size: int) -> None:
    """Raises ConfigError with every problem, one a line, if `config` cannot run on `world_size` ranks."""
    found = problems(config, world_size)
    if found:
        raise ConfigError("this run cannot start:\n" + "\n".join(f"  - {line}" for line in found))
