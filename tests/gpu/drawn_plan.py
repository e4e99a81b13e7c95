"""The planner's fastest layout for steps on drawn data, as options of `tests.gpu.drawn_rank`."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_vlm.cli.plan_tables import overrides_of
from megatron_vlm.config.run import RunConfig
from megatron_vlm.planning.estimate import Estimate
from megatron_vlm.planning.flops import BatchShape
from megatron_vlm.planning.hardware import Hardware
from megatron_vlm.planning.layout_search import search
from megatron_vlm.planning.run_stretches import Stretch
from megatron_vlm.training.device_check.drawn_steps import configuration, drawn_lengths
from tests.gpu.drawn_rank import TOKENS

STEPS = 8
#: packs of a step for each GPU
PACKS = 8


@dataclass(frozen=True)
class Planned:
    plan: Estimate
    overrides: tuple[str, ...]


def batch_of(config: RunConfig) -> BatchShape:
    """What `drawn_batches` draws for a step."""
    shape = config.shape_of(0)
    documents = drawn_lengths(shape) * shape.global_batch_size
    pictures = sum(pictured for _, pictured in documents)
    positions = shape.global_batch_size * shape.sequence_length
    return BatchShape(positions, tuple(length for length, _ in documents), pictures, shape.image_size)


def plan_for(preset: str, gpus: int, hardware: Hardware) -> Planned | None:
    """The planner's fastest layout of a short run on drawn data; None where none fits."""
    size = ["--schedule.global_batch_size", str(PACKS * gpus), "--schedule.micro_batch_size", "1"]
    sources = ["--data.sources", "{text: text, captions: captions}"]
    config = configuration(preset, STEPS, [*sources, *size])
    shape = config.shape_of(0)
    documents = drawn_lengths(shape)
    visual = sum(shape.image_tokens for _, pictured in documents if pictured) / shape.sequence_length
    length = sum(length**2 for length, _ in documents) / shape.sequence_length
    run = [Stretch("drawn", shape, STEPS, visual, length)]
    found = search(config, hardware, gpus, run, TOKENS.vocab_size, visions=("tensor",), precision="bf16", keep=1).best
    if not found:
        return None
    changed = tuple(" ".join(overrides_of(found[0], config)).split())
    return Planned(found[0], (*size, *changed, "--parallel.precision", "bf16"))
