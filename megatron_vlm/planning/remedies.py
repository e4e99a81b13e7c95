"""What to change in a layout that does not fit: the nearest ones that do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from megatron_vlm.config.checks import training_layout_problems
from megatron_vlm.config.run import RunConfig
from megatron_vlm.planning.context_sizes import context_sizes, rows_divide
from megatron_vlm.planning.edge_layers import most_stages
from megatron_vlm.planning.efficiency import Efficiency
from megatron_vlm.planning.estimate import Estimate, estimate
from megatron_vlm.planning.layout_search import in_micro_batches
from megatron_vlm.planning.run_stretches import Stretch


@dataclass(frozen=True)
class Remedy:
    """Overrides that make it fit, and what the run then takes."""

    overrides: tuple[str, ...]
    estimate: Estimate


def remedies(
    failed: Estimate, stretches: Sequence[Stretch], vocab_size: int, efficiency: Efficiency | None = None, most: int = 3
) -> list[Remedy]:
    """The fastest few of the layouts that fit with as few changes as it takes."""
    found: list[Remedy] = []
    for few in _changes(failed, context_sizes(stretches, failed.gpus)):
        for change in few:
            config = _changed(failed.config, change)
            batches = in_micro_batches(config, stretches)
            if not _runs(config, failed.gpus, batches):
                continue
            tried = estimate(
                config,
                failed.hardware,
                failed.gpus,
                batches,
                vocab_size,
                efficiency=efficiency,
                precision=failed.layout.precision,
                vision=failed.layout.vision,
            )
            if tried.fits:
                overrides = tuple(f"--{name} {str(value).lower()}" for name, value in change.items())
                found.append(Remedy(overrides, tried))
        if found:
            break
    return sorted(found, key=lambda remedy: remedy.estimate.seconds)[:most]


def _changes(failed: Estimate, contexts: Sequence[int]) -> Iterator[list[dict[str, object]]]:
    """Changes of one kind, then of two at once, then of three. `contexts`: sizes that rows as long as the run's are shared
    by."""
    parallel, sizes = failed.config.parallel, _micro_batch_sizes(failed.config)
    tensor, pipeline = parallel.tensor_model_parallel_size, parallel.pipeline_model_parallel_size
    recompute: list[dict[str, object]] = [{"parallel.recompute": "full"}] if parallel.recompute != "full" else []
    smaller: list[dict[str, object]] = []
    most = max(sizes.values())
    while most > 1:
        most //= 2
        smaller.append({name: most for name, size in sizes.items() if size > most})
    split: list[dict[str, object]] = []
    while tensor * 2 <= failed.hardware.gpus_per_node:
        tensor *= 2
        split.append({"parallel.tensor_model_parallel_size": tensor, "parallel.sequence_parallel": True})
    deeper: list[dict[str, object]] = []
    while pipeline * 2 <= most_stages(failed.config):
        pipeline *= 2
        deeper.append({"parallel.pipeline_model_parallel_size": pipeline})
    shared: list[dict[str, object]] = [
        {"parallel.context_parallel_size": size} for size in contexts if size > parallel.context_parallel_size
    ]
    kinds = [recompute, smaller, split, deeper, shared]
    if parallel.tensor_model_parallel_size > 1 and not parallel.sequence_parallel:
        kinds.append([{"parallel.sequence_parallel": True}])
    if not parallel.use_distributed_optimizer:
        kinds.append([{"parallel.use_distributed_optimizer": True}])
    yield [change for kind in kinds for change in kind]
    pairs = [(a, b) for n, a in enumerate(kinds) for b in kinds[n + 1 :]]
    yield [{**x, **y} for a, b in pairs for x in a for y in b]
    yield [{**x, **y, **z} for x in recompute or [{}] for y in split for z in deeper + shared]


def _micro_batch_sizes(config: RunConfig) -> dict[str, int]:
    """The run's, and those of stages with a size of their own."""
    sizes = {"schedule.micro_batch_size": config.schedule.micro_batch_size}
    for number, stage in enumerate(config.curriculum.stages):
        if stage.micro_batch_size:
            sizes[f"curriculum.stages.{number}.micro_batch_size"] = stage.micro_batch_size
    return sizes


def _changed(config: RunConfig, change: dict[str, object]) -> RunConfig:
    for name, value in change.items():
        section, *within, field = name.split(".")
        part = getattr(config, section)
        if within:  # curriculum.stages.NUMBER.FIELD
            stages = list(part.stages)
            stages[int(within[1])] = replace(stages[int(within[1])], **{field: value})
            changed = replace(part, stages=tuple(stages))
        else:
            changed = replace(part, **{field: value})
        config = replace(config, **{section: changed})
    return config


def _runs(config: RunConfig, gpus: int, stretches: Sequence[Stretch]) -> bool:
    if training_layout_problems(config, gpus):
        return False
    language, parallel = config.model.language, config.parallel
    tensor, pipeline = parallel.tensor_model_parallel_size, parallel.pipeline_model_parallel_size
    sizes = (
        language.num_attention_heads,
        language.query_groups,
        language.ffn_width,
        language.vocab_pad_multiple,
        config.model.vision.num_attention_heads,
        config.model.vision.ffn_width,
    )
    if gpus % parallel.model_ranks or any(size % tensor for size in sizes) or not rows_divide(config, stretches):
        return False
    chunks = pipeline * parallel.virtual_pipeline_model_parallel_size
    ends = (parallel.num_layers_in_first_pipeline_stage, parallel.num_layers_in_last_pipeline_stage)
    if language.num_layers % chunks or ends != (None, None):
        return False
    unit = gpus // parallel.model_ranks * (pipeline if chunks > pipeline else 1)
    return all(s.shape.global_batch_size % (s.shape.micro_batch_size * unit) == 0 for s in stretches)
