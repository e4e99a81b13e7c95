"""What segments cost by the planner: tokens, operations, GPU-hours; and what sharing them saves."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from megatron_vlm.config.run import RunConfig
from megatron_vlm.data.tokenizer import Tokenizer
from megatron_vlm.errors import UserError
from megatron_vlm.planning.curriculum_plan import plan_curriculum
from megatron_vlm.planning.estimate import estimate
from megatron_vlm.planning.hardware import hardware
from megatron_vlm.planning.run_stretches import run_stretches
from megatron_vlm.study.segments import Graph as Graph
from megatron_vlm.study.segments import Segment, separately
from megatron_vlm.training.source_shapes import read_shapes

#: tokens of a document that no dataset tells of: of text, and of what goes with a picture
TEXT_TOKENS, CAPTION_TOKENS = 1000.0, 38.0
#: where no tokenizer is there: GPT-NeoX's
VOCABULARY = 50277


@dataclass(frozen=True)
class Cost:
    """Of training; evaluation is not counted."""

    steps: int = 0
    tokens: int = 0
    flops: float = 0.0
    gpu_hours: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.steps + other.steps,
            self.tokens + other.tokens,
            self.flops + other.flops,
            self.gpu_hours + other.gpu_hours,
        )


def segment_costs(graph: Graph, gpu: str, gpus: int) -> tuple[dict[str, Cost], list[str]]:
    """Cost of each segment by key, and what was assumed.

    Raises ConfigError for GPUs that a layout does not divide.
    """
    notes: dict[str, None] = {}
    rates: dict[int, dict[str, tuple[float, float]]] = {}
    costs = {}
    for segment in graph.segments:
        if segment.kind == "evaluate":
            costs[segment.key] = Cost()
            continue
        if id(segment.config) not in rates:
            rates[id(segment.config)] = _per_step(segment.config, gpu, gpus, notes)
        config, steps = segment.config, segment.end_step - segment.first_step
        stage = config.curriculum.stages[config.stage_of(segment.first_step)].name
        flops, seconds = rates[id(config)][stage]
        costs[segment.key] = Cost(steps, segment.tokens, steps * flops, steps * seconds * gpus / 3600)
    return costs, list(notes)


def totals(graph: Graph, costs: dict[str, Cost]) -> tuple[Cost, Cost]:
    """Of the graph, and of as many separate runs."""
    return _sum(graph.segments, costs), _sum(separately(graph.leaves), costs)


def _sum(segments: Iterable[Segment], costs: dict[str, Cost]) -> Cost:
    return sum((costs[segment.key] for segment in segments), Cost())


def _per_step(config: RunConfig, gpu: str, gpus: int, notes: dict[str, None]) -> dict[str, tuple[float, float]]:
    """Stage -> operations and seconds of a step, means over the stage."""
    sources = config.data.sources or {
        name: "" for stage in config.curriculum.stages for name in (*stage.sources, *stage.sources_from)
    }
    config = replace(config, data=replace(config.data, sources=sources))
    assumed = {}
    for name, prefix in sources.items():
        if not Path(f"{prefix}.idx").is_file():
            plain = "text" in name
            assumed[name] = (TEXT_TOKENS, 0.0) if plain else (CAPTION_TOKENS, 1.0)
            about = f"{TEXT_TOKENS:g} tokens" if plain else f"{CAPTION_TOKENS:g} tokens and a picture"
            notes[f"{name}: no dataset, documents of {about} assumed"] = None
    shapes, _ = read_shapes(config, assumed)
    try:
        words = Tokenizer.load(Path(config.data.tokenizer)).vocab_size
    except UserError:
        words = VOCABULARY
        notes[f"no tokenizer: a vocabulary of {VOCABULARY:,}"] = None
    stretches = run_stretches(config, plan_curriculum(config, shapes, lambda step: 0.0), shapes)
    found = estimate(config, hardware(gpu), gpus, stretches, words)
    sums: dict[str, list[float]] = {}
    for part in found.stretches:
        total = sums.setdefault(part.stretch.name, [0.0, 0.0, 0.0])
        total[0] += part.stretch.steps
        total[1] += part.stretch.steps * part.model_flops
        total[2] += part.seconds
    return {name: (flops / steps, seconds / steps) for name, (steps, flops, seconds) in sums.items() if steps}
