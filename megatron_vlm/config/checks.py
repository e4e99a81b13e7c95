"""Cross-checks of a configuration against itself and the number of ranks, before anything is built.

Every problem is reported at once; each names the field, the reason and the nearest value that would work.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from megatron_vlm.config.curriculum import MODULES
from megatron_vlm.config.curriculum_checks import curriculum_problems
from megatron_vlm.config.freeze_checks import freeze_problems
from megatron_vlm.config.kept_features import feature_problems
from megatron_vlm.config.language_checks import language_problems
from megatron_vlm.config.model import VisionConfig
from megatron_vlm.config.nearest import nearest_divisor, nearest_multiple
from megatron_vlm.config.performance_checks import performance_problems
from megatron_vlm.config.precision_checks import precision_problems
from megatron_vlm.config.ranges import range_problems
from megatron_vlm.config.run import RunConfig
from megatron_vlm.config.shape_checks import batch_problems, picture_problems, row_problems
from megatron_vlm.errors import ConfigError


def _lora(config: RunConfig) -> Iterator[str]:
    lora, language = config.model.lora, config.model.language
    if not lora.rank:
        return
    narrowest = min(language.hidden_size, language.ffn_width, language.query_groups * language.head_dim)
    if lora.rank > narrowest:
        yield f"model.lora.rank: {lora.rank} must be 0 (off) to {narrowest}, the narrowest matrix's side"
    if not lora.targets:
        yield "model.lora.targets: name at least one of qkv, proj, fc1, fc2"
    if config.parallel.layer_spec == "transformer_engine":
        yield (
            "model.lora.rank: low-rank updates stand beside megatron-core's own layers, and Transformer Engine's are fused; "
            "set parallel.layer_spec to host, or the rank to 0"
        )


def _model(config: RunConfig) -> Iterator[str]:
    language, vision = config.model.language, config.model.vision
    shuffle = config.model.projector.pixel_shuffle
    heads = language.num_attention_heads
    yield from language_problems(language)
    if language.kv_channels is None and language.hidden_size % 2:
        yield (
            f"model.language.hidden_size: {language.hidden_size} is odd, and rotary positions need heads of an even size; "
            f"nearest: {language.hidden_size + 1}"
        )
    elif language.kv_channels is None and (language.hidden_size % heads or language.head_dim % 2):
        # heads of an even size are the divisors of half the width
        nearest = nearest_divisor(language.hidden_size // 2, heads)
        yield (
            f"model.language.num_attention_heads: {heads} does not divide hidden_size {language.hidden_size} into heads of "
            f"an even size, as rotary positions need; nearest that does: {nearest}"
        )
    yield from _encoder("model.vision", vision)
    second = config.model.vision_second
    if second is not None:
        yield from _encoder("model.vision_second", second)
        if second.patch_size != vision.patch_size:
            yield (
                f"model.vision_second.patch_size: {second.patch_size}, and model.vision has {vision.patch_size}: features "
                f"of a patch stand side by side; nearest that does: {vision.patch_size}"
            )
    if language.num_attention_heads % language.query_groups:
        yield (
            f"model.language.num_query_groups: {language.query_groups} does not divide the "
            f"{language.num_attention_heads} attention heads; nearest that does: "
            f"{nearest_divisor(language.num_attention_heads, language.query_groups)}"
        )
    if vision.patch_size > vision.image_size:
        most = max(1, vision.image_size // shuffle)
        yield f"model.vision.patch_size: {vision.patch_size} is larger than image_size {vision.image_size}; at most {most}"
    elif vision.grid % shuffle:
        yield (
            f"model.projector.pixel_shuffle: {shuffle} does not divide the {vision.grid} x {vision.grid} patches of a "
            f"picture; nearest that does: {nearest_divisor(vision.grid, shuffle)}"
        )


def check_encoder(config: RunConfig, image_size: int, fold: int) -> None:
    """Raises ConfigError where pictures of `image_size` pixels a side are no whole rows of `fold` x `fold` patches."""
    patch = config.model.vision.patch_size
    grid = image_size // patch
    if grid < fold or grid % fold:
        raise ConfigError(
            f"{image_size} pixels a side are {grid} x {grid} patches, which pixel_shuffle x image_pool = {fold} does not "
            f"divide; nearest that does: {nearest_multiple(patch * fold, image_size)} pixels"
        )


def _encoder(where: str, vision: VisionConfig) -> Iterator[str]:
    if vision.hidden_size % vision.num_attention_heads:
        yield (
            f"{where}.num_attention_heads: {vision.num_attention_heads} does not divide hidden_size "
            f"{vision.hidden_size}; nearest that does: {nearest_divisor(vision.hidden_size, vision.num_attention_heads)}"
        )
    if vision.register_tokens and vision.kind != "dinov2":
        yield f"{where}.register_tokens: only dinov2 has register tokens, kind is {vision.kind}; set it to 0"
    if vision.skip_last_layers >= max(1, vision.num_layers):
        yield (
            f"{where}.skip_last_layers: {vision.skip_last_layers} must be from 0 to {vision.num_layers - 1} "
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
        "model.language.vocab_pad_multiple": language.vocab_pad_multiple,
    }
    if parallel.vision == "tensor":
        split |= {
            "model.vision.num_attention_heads": vision.num_attention_heads,
            "model.vision.ffn_hidden_size": vision.ffn_width,
            "model.projector.hidden_size": config.model.projector.hidden_size or language.hidden_size,
        }
        if (second := config.model.vision_second) is not None:
            split |= {
                "model.vision_second.num_attention_heads": second.num_attention_heads,
                "model.vision_second.ffn_hidden_size": second.ffn_width,
            }
    nearest = nearest_divisor(math.gcd(*split.values()), tp)  # one value that suits all of them
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
        chunks = nearest_divisor(language.num_layers, pp * vp)
        sizes = f"pipeline x virtual = {pp} x {vp} = {pp * vp}"
        yield (
            f"parallel.pipeline_model_parallel_size: {sizes} does not divide model.language.num_layers "
            f"{language.num_layers}; nearest number of chunks that does: {chunks}, or "
            f"{nearest_multiple(pp * vp, language.num_layers)} layers"
        )
    if vp > 1 and pp < 2:
        yield (
            "parallel.virtual_pipeline_model_parallel_size: an interleaved schedule needs "
            "pipeline_model_parallel_size of at least 2; set it to 1"
        )
    yield from row_problems(config)
    if parallel.sequence_parallel and tp == 1:
        yield "parallel.sequence_parallel: needs tensor_model_parallel_size above 1; set it to false"
    if parallel.overlap_param_gather and not parallel.use_distributed_optimizer:
        yield "parallel.overlap_param_gather: needs use_distributed_optimizer: true"
    if parallel.overlap_param_gather and not parallel.overlap_grad_reduce:
        yield "parallel.overlap_param_gather: needs overlap_grad_reduce: true"
    if world_size % parallel.model_ranks:
        cp = parallel.context_parallel_size
        yield (
            f"parallel: tensor x context x pipeline = {tp} x {cp} x {pp} = {parallel.model_ranks} does not divide the "
            f"{world_size} ranks that were started; start a multiple of {parallel.model_ranks} (torchrun --nproc-per-node)"
        )


def _data(config: RunConfig) -> Iterator[str]:
    if not config.data.tokenizer:
        yield "data.tokenizer: give the tokenizer that the datasets were made with (--data.tokenizer PATH)"


def _batches(config: RunConfig, world_size: int) -> Iterator[str]:
    ranks = config.parallel.model_ranks
    if world_size % ranks == 0:  # else there is no data-parallel size to speak of
        yield from batch_problems(config, world_size // ranks)


def plan_problems(config: RunConfig) -> list[str]:
    """Every reason why the curriculum has no plan, whatever it runs on; empty when it has one."""
    return list(range_problems(config)) or [
        *curriculum_problems(config),
        *freeze_problems(config),
        *picture_problems(config),
        *_schedule(config),
    ]


def _checkpoint(config: RunConfig) -> Iterator[str]:
    settings = config.checkpoint
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


def training_layout_problems(config: RunConfig, world_size: int) -> list[str]:
    """Those of `problems` that another layout may not have, but for batches that do not go into it."""
    return [*_layout(config, world_size), *precision_problems(config), *performance_problems(config)]


def problems(config: RunConfig, world_size: int) -> list[str]:
    """Every reason why this configuration cannot run on `world_size` ranks; empty when it can.

    Numbers out of their ranges are named alone: what they mean to each other could not be worked out.
    """
    found = list(range_problems(config))
    if found:
        return found
    return [
        *_model(config),
        *_lora(config),
        *training_layout_problems(config, world_size),
        *_batches(config, world_size),
        *curriculum_problems(config),
        *freeze_problems(config),
        *picture_problems(config),
        *_data(config),
        *feature_problems(config),
        *_schedule(config),
        *_faults(config),
        *_checkpoint(config),
    ]


def _schedule(config: RunConfig) -> Iterator[str]:
    schedule = config.schedule
    if schedule.warmup_steps >= max(config.total_steps, 1) and schedule.warmup_steps > 0:
        yield (
            f"schedule.warmup_steps: {schedule.warmup_steps} leaves no step after the warm-up in a run of "
            f"{config.total_steps}; at most {max(config.total_steps - 1, 0)}"
        )
    if schedule.min_lr > schedule.lr:
        yield f"schedule.min_lr: {schedule.min_lr:g} must be from 0 to schedule.lr {schedule.lr:g}"
    if schedule.decay_steps is not None and schedule.decay_steps <= schedule.warmup_steps:
        yield (
            f"schedule.decay_steps: the decay ends at step {schedule.decay_steps}, before the warm-up of "
            f"{schedule.warmup_steps} does; at least {schedule.warmup_steps + 1}"
        )
    for module in config.optimizer.lr_mult:
        if module not in MODULES:
            yield f"optimizer.lr_mult.{module}: modules are language, vision and projector"


def _faults(config: RunConfig) -> Iterator[str]:
    faults = config.faults
    if faults.spike_window < faults.spike_history:
        yield (
            f"faults.spike_window: {faults.spike_window} steps never hold the spike_history of {faults.spike_history}; at "
            f"least {faults.spike_history}"
        )
    if faults.bad_step_window <= faults.max_bad_steps:
        yield (
            f"faults.bad_step_window: {faults.bad_step_window} steps never hold more than max_bad_steps "
            f"{faults.max_bad_steps} bad ones; at least {faults.max_bad_steps + 1}"
        )
    if faults.long_timeout_s < faults.timeout_s:
        yield (
            f"faults.long_timeout_s: {faults.long_timeout_s:g} is below timeout_s {faults.timeout_s:g}; at least "
            f"{faults.timeout_s:g}"
        )


def layout_problems(config: RunConfig, world_size: int) -> list[str]:
    """Reasons why the model cannot be laid out on `world_size` ranks for evaluation, where batches do not matter."""
    return [line for line in _layout(config, world_size) if not line.startswith("curriculum.")]


def check(config: RunConfig, world_size: int) -> None:
    """Raises ConfigError with every problem, one a line, if `config` cannot run on `world_size` ranks."""
    refuse(problems(config, world_size))


def refuse(found: Sequence[str]) -> None:
    """Raises ConfigError with the problems that were found, one a line, if there are any."""
    if found:
        raise ConfigError("this run cannot start:\n" + "\n".join(f"  - {line}" for line in found))
