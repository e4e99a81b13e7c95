"""The fastest layouts of a run on a number of GPUs, by trying all that divide it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import ceil, gcd

from megatron_vlm.config.checks import training_layout_problems
from megatron_vlm.config.run import RunConfig
from megatron_vlm.planning.context_sizes import context_sizes, rows_divide
from megatron_vlm.planning.edge_layers import most_stages
from megatron_vlm.planning.efficiency import Efficiency, efficiency_of
from megatron_vlm.planning.estimate import Estimate, estimate, padded_vocab
from megatron_vlm.planning.hardware import Hardware
from megatron_vlm.planning.layout import VISION_PLACEMENTS, Layout, Recompute, VisionPlacement, layout_of, with_vision
from megatron_vlm.planning.memory import rank_memory
from megatron_vlm.planning.pipeline_simulator import Times, least_span, span
from megatron_vlm.planning.run_stretches import Stretch
from megatron_vlm.planning.step_time import step_time

_RECOMPUTE: tuple[Recompute, ...] = ("none", "selective", "full")
#: deeper pipelines and more chunks are not tried
_MOST_STAGES, _MOST_CHUNKS, _MOST_MICRO_BATCH = 64, 8, 16


@dataclass(frozen=True)
class Candidate:
    """A layout as the fields of a configuration."""

    config: RunConfig
    vision: VisionPlacement
    stretches: tuple[Stretch, ...]


@dataclass(frozen=True)
class SearchResult:
    """`best`: fitting layouts, fastest first. `tried` were laid out, of which `too_large` do not fit in memory. `refused`:
    where none of the layouts can run, what is wrong with the one that lacks least."""

    best: tuple[Estimate, ...]
    tried: int
    too_large: int
    #: what needed least memory of those that do not fit; None where something fits
    nearest: Estimate | None
    refused: tuple[str, ...] = ()


def _divisors(number: int, most: int) -> list[int]:
    return [n for n in range(1, min(number, most) + 1) if number % n == 0]


def _uneven(layers: int, pipeline: int) -> Iterator[tuple[int | None, int | None]]:
    """Layers of the first and last stage: as many as the others, or fewer, since these have more to do besides."""
    if layers % pipeline == 0:
        yield None, None
    if pipeline < 3:
        if pipeline == 2:
            for less in (1, 2, 3):
                if layers - less > 2 * less:
                    yield (layers - less) // 2, layers - (layers - less) // 2
                    yield layers - (layers - less) // 2, (layers - less) // 2
        return
    for middle in (-(-layers // pipeline), -(-layers // pipeline) + 1):
        ends = layers - middle * (pipeline - 2)
        firsts = {ends // 2, ends - ends // 2, max(1, ends // 2 - 1), max(1, ends // 2 + 1)}
        for first in sorted(firsts):
            last = ends - first
            if first >= 1 and last >= 1 and max(first, last) <= middle and (first, last) != (middle, middle):
                yield first, last


def _layouts(config: RunConfig, gpus: int, gpus_per_node: int, contexts: Sequence[int]) -> Iterator[dict[str, object]]:
    """Fields of `parallel` that a model of these shapes allows, with each of `contexts` that goes into the GPUs."""
    language, vision = config.model.language, config.model.vision
    common = gcd(
        language.num_attention_heads,
        language.query_groups,
        language.ffn_width,
        language.vocab_pad_multiple,
        vision.num_attention_heads,
        vision.ffn_width,
        config.model.projector.hidden_size or language.hidden_size,
    )
    deepest = min(_MOST_STAGES, most_stages(config))
    for tensor in _divisors(gcd(common, gpus), gpus_per_node):
        shared = [context for context in contexts if gpus // tensor % context == 0]
        for context, pipeline in ((c, p) for c in shared for p in _divisors(gpus // (tensor * c), deepest)):
            fields = {
                "tensor_model_parallel_size": tensor,
                "context_parallel_size": context,
                "pipeline_model_parallel_size": pipeline,
                "sequence_parallel": tensor > 1,
                "use_distributed_optimizer": True,
                "overlap_grad_reduce": True,
                "overlap_param_gather": True,
            }
            for first, last in _uneven(language.num_layers, pipeline):
                ends = {"num_layers_in_first_pipeline_stage": first, "num_layers_in_last_pipeline_stage": last}
                yield {**fields, **ends, "virtual_pipeline_model_parallel_size": 1}
            if pipeline > 1 and language.num_layers % pipeline == 0:
                for virtual in _divisors(language.num_layers // pipeline, _MOST_CHUNKS)[1:]:
                    none = {"num_layers_in_first_pipeline_stage": None, "num_layers_in_last_pipeline_stage": None}
                    yield {**fields, **none, "virtual_pipeline_model_parallel_size": virtual}


def _micro_batches(stretches: Sequence[Stretch], data: int, unit: int) -> list[int]:
    """Sizes that deal every batch of the run out evenly."""
    sizes = []
    for size in (1, 2, 4, 8, _MOST_MICRO_BATCH):
        if all(stretch.shape.global_batch_size % (size * data * unit) == 0 for stretch in stretches):
            sizes.append(size)
    return sizes


def with_micro_batch(config: RunConfig, size: int) -> RunConfig:
    """The configuration with micro-batches of one size in all stages, in those too that have their own."""
    stages = tuple(replace(s, micro_batch_size=size) if s.micro_batch_size else s for s in config.curriculum.stages)
    curriculum, schedule = replace(config.curriculum, stages=stages), replace(config.schedule, micro_batch_size=size)
    return replace(config, curriculum=curriculum, schedule=schedule)


def in_micro_batches(config: RunConfig, stretches: Sequence[Stretch]) -> tuple[Stretch, ...]:
    """The stretches in micro-batches as the configuration has them in their stages."""
    size = config.schedule.micro_batch_size
    sizes = [stage.micro_batch_size or size for stage in config.curriculum.stages]
    return tuple(replace(s, shape=replace(s.shape, micro_batch_size=sizes[s.shape.stage])) for s in stretches)


def candidates(
    config: RunConfig, gpus: int, gpus_per_node: int, stretches: Sequence[Stretch], visions: Sequence[VisionPlacement]
) -> Iterator[Candidate]:
    """Every layout but for recomputation. Micro-batches are one size in all stages of the curriculum; rows are shared where
    they are long (`context_sizes`)."""
    sees = any(stretch.visual_share > 0 for stretch in stretches)
    for fields in _layouts(config, gpus, gpus_per_node, context_sizes(stretches, gpus)):
        parallel = replace(config.parallel, **fields)  # type: ignore[arg-type]
        tensor, pipeline = parallel.tensor_model_parallel_size, parallel.pipeline_model_parallel_size
        unit = pipeline if parallel.virtual_pipeline_model_parallel_size > 1 else 1
        for size in _micro_batches(stretches, gpus // parallel.model_ranks, unit):
            laid = with_micro_batch(replace(config, parallel=parallel), size)
            batches = in_micro_batches(laid, stretches)
            if not rows_divide(laid, batches):
                continue
            for vision in visions if sees else visions[:1]:
                if (vision == "data_first_stage" and tensor == 1) or (vision == "data_all_stages" and pipeline == 1):
                    continue  # the same as another
                yield Candidate(with_vision(laid, vision), vision, batches)


def search(
    config: RunConfig,
    hardware: Hardware,
    gpus: int,
    stretches: Sequence[Stretch],
    vocab_size: int,
    *,
    efficiency: Efficiency | None = None,
    precision: str | None = None,
    visions: Sequence[VisionPlacement] = VISION_PLACEMENTS,
    keep: int = 10,
) -> SearchResult:
    """The fastest `keep` layouts that the trainer takes. Each takes the least recomputation with which it fits."""
    room, measured = hardware.memory * hardware.usable_memory, efficiency or efficiency_of(hardware.name)
    padded = padded_vocab(config, vocab_size)
    bounded: list[tuple[float, int, Candidate, Layout]] = []
    smallest: tuple[float, Candidate] | None = None
    refused: list[str] | None = None
    tried = 0
    for candidate in candidates(config, gpus, hardware.gpus_per_node, stretches, visions):
        each = [replace(candidate, config=_recomputing(candidate.config, recompute)) for recompute in _RECOMPUTE]
        wrong = [training_layout_problems(laid.config, gpus) for laid in each]
        if all(wrong):
            refused = min(wrong if refused is None else [refused, *wrong], key=len)
            continue
        tried += 1
        for laid in (laid for laid, lines in zip(each, wrong, strict=True) if not lines):
            layout = layout_of(laid.config, gpus, precision, laid.vision)
            needed = _memory(laid, layout, padded)
            if smallest is None or needed < smallest[0]:
                smallest = needed, laid
            if needed <= room:
                least = _seconds(laid, layout, padded, hardware, measured, least_span)
                bounded.append((least, tried, laid, layout))
                break
    timed = _fastest(bounded, keep, lambda laid, layout: _seconds(laid, layout, padded, hardware, measured, span))

    def whole(candidate: Candidate) -> Estimate:
        return estimate(
            candidate.config,
            hardware,
            gpus,
            candidate.stretches,
            vocab_size,
            efficiency=measured,
            precision=precision,
            vision=candidate.vision,
        )

    nearest = whole(smallest[1]) if not timed and smallest is not None else None
    best = tuple(whole(candidate) for candidate in timed)
    return SearchResult(best, tried, tried - len(bounded), nearest, () if tried else tuple(refused or ()))


def _fastest(
    bounded: list[tuple[float, int, Candidate, Layout]], keep: int, seconds: Callable[[Candidate, Layout], float]
) -> list[Candidate]:
    """The fastest `keep`. In the order of their bounds, so that the rest need no simulation once `keep` are faster than
    what the next could be at best."""
    found: list[tuple[float, int, Candidate]] = []
    for least, number, candidate, layout in sorted(bounded, key=lambda one: one[:2]):
        if len(found) >= keep and least > found[keep - 1][0]:
            break
        found.append((seconds(candidate, layout), number, candidate))
        found.sort(key=lambda one: one[:2])
    return [candidate for _, _, candidate in found[:keep]]


def _recomputing(config: RunConfig, recompute: Recompute) -> RunConfig:
    return replace(config, parallel=replace(config.parallel, recompute=recompute))


def _memory(candidate: Candidate, layout: Layout, vocab_size: int) -> float:
    """Of the heaviest rank: in the first stage, in the last, or in the second where the first has fewer layers."""
    stages = {0, min(1, layout.pipeline - 1), layout.pipeline - 1}
    return max(
        rank_memory(
            candidate.config,
            vocab_size,
            layout,
            stretch.shape,
            stage,
            ceil(stretch.pictures(stretch.shape.micro_batch_size)),
            stretch.frozen,
        ).total
        for stretch in candidate.stretches
        for stage in stages
    )


def _seconds(
    candidate: Candidate,
    layout: Layout,
    vocab_size: int,
    hardware: Hardware,
    efficiency: Efficiency,
    spanned: Callable[[Times, int], float],
) -> float:
    total = 0.0
    for stretch in candidate.stretches:
        packs = stretch.shape.micro_batch_size
        time = step_time(
            candidate.config,
            vocab_size,
            layout,
            stretch.shape,
            stretch.pictures(packs),
            stretch.lengths(packs),
            hardware,
            efficiency,
            stretch.frozen,
            spanned=spanned,
        )
        total += stretch.steps * time.seconds
    return total
