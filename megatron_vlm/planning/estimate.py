"""What a run takes on a number of GPUs: time, memory, operations, GPU-hours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from megatron_vlm.config.run import RunConfig
from megatron_vlm.errors import ConfigError
from megatron_vlm.planning.efficiency import Efficiency, efficiency_of
from megatron_vlm.planning.flops import step_flops
from megatron_vlm.planning.hardware import Hardware
from megatron_vlm.planning.layout import Layout, VisionPlacement, layout_of
from megatron_vlm.planning.memory import RankMemory, memory_by_stage
from megatron_vlm.planning.recomputation import recomputed_flops
from megatron_vlm.planning.run_stretches import Stretch
from megatron_vlm.planning.step_time import StepTime, step_time


@dataclass(frozen=True)
class StretchEstimate:
    """Of one stretch. FLOPs are of a whole step; `memory` is by pipeline stage, the same on its other ranks."""

    stretch: Stretch
    time: StepTime
    memory: tuple[RankMemory, ...]
    model_flops: int
    recomputed_flops: int

    @property
    def tokens_per_second(self) -> float:
        return self.stretch.tokens_per_step / self.time.seconds

    @property
    def seconds(self) -> float:
        return self.stretch.steps * self.time.seconds


@dataclass(frozen=True)
class Estimate:
    """Of a whole run in one layout. Seconds are of training alone: no start, evaluation, checkpoint or failure."""

    config: RunConfig
    layout: Layout
    hardware: Hardware
    stretches: tuple[StretchEstimate, ...]

    @property
    def gpus(self) -> int:
        return self.layout.gpus

    @cached_property
    def seconds(self) -> float:
        return sum(part.seconds for part in self.stretches)

    @property
    def days(self) -> float:
        return self.seconds / 86400

    @property
    def gpu_hours(self) -> float:
        return self.seconds * self.gpus / 3600

    @cached_property
    def steps(self) -> float:
        return sum(part.stretch.steps for part in self.stretches)

    @property
    def step_seconds(self) -> float:
        """A mean over the run."""
        return self.seconds / max(1e-9, self.steps)

    @cached_property
    def tokens(self) -> float:
        return sum(part.stretch.steps * part.stretch.tokens_per_step for part in self.stretches)

    @property
    def tokens_per_second(self) -> float:
        """Of all GPUs together, a mean over the run; positions, pictures' too."""
        return self.tokens / max(1e-9, self.seconds)

    @cached_property
    def model_flops(self) -> float:
        return sum(part.stretch.steps * part.model_flops for part in self.stretches)

    @property
    def model_flops_utilisation(self) -> float:
        """Of the peak of the layout's precision. In fp8 that is the fp8 peak."""
        return self.model_flops / max(1e-9, self.seconds) / self.gpus / self.hardware.peak_of(self.layout.precision)

    @cached_property
    def memory_by_stage(self) -> tuple[RankMemory, ...]:
        """Of each pipeline stage, in the stretch of the run in which it needs most."""
        return tuple(
            max((part.memory[stage] for part in self.stretches), key=lambda memory: memory.total)
            for stage in range(self.layout.pipeline)
        )

    @property
    def memory_by_rank(self) -> tuple[RankMemory, ...]:
        """The same for every rank that a micro-batch is computed by, tensor-parallel neighbours first."""
        ranks = self.layout.tensor * self.layout.context
        return tuple(memory for memory in self.memory_by_stage for _ in range(ranks))

    @property
    def most_memory(self) -> RankMemory:
        return max(self.memory_by_stage, key=lambda memory: memory.total)

    @property
    def fits(self) -> bool:
        return self.most_memory.total <= self.hardware.memory * self.hardware.usable_memory

    def cost(self, price: float) -> float:
        """At a price of one GPU for an hour."""
        return self.gpu_hours * price


def estimate(
    config: RunConfig,
    hardware: Hardware,
    gpus: int,
    stretches: Sequence[Stretch],
    vocab_size: int,
    *,
    efficiency: Efficiency | None = None,
    precision: str | None = None,
    vision: VisionPlacement | None = None,
) -> Estimate:
    """The configuration's own layout on `gpus` GPUs.

    Args:
        stretches: of the run (`run_stretches`); their batches are dealt to the layout's data-parallel ranks.
        vocab_size: as the tokenizer has it; it is padded here.
        efficiency: None: the factors fitted to published runs on that GPU.
        precision: bf16, fp8 or fp32; None: the configuration's.
        vision: where pictures are encoded; None: the configuration's.

    Raises:
        ConfigError: GPUs that the layout does not divide, or a precision that they lack.
    """
    layout = layout_of(config, gpus, precision, vision)
    size = config.parallel.model_ranks
    if gpus % size:
        sizes = "tensor x context x pipeline" if layout.context > 1 else "tensor x pipeline"
        raise ConfigError(f"--gpus {gpus}: {sizes} = {size} does not divide it; nearest: {max(1, gpus // size) * size}")
    hardware.peak_of(layout.precision)
    padded = padded_vocab(config, vocab_size)
    measured = efficiency or efficiency_of(hardware.name)
    return Estimate(
        config, layout, hardware, tuple(_stretch(config, layout, hardware, one, padded, measured) for one in stretches)
    )


def padded_vocab(config: RunConfig, vocab_size: int) -> int:
    multiple = config.model.language.vocab_pad_multiple
    return -(-vocab_size // multiple) * multiple


def _stretch(
    config: RunConfig, layout: Layout, hardware: Hardware, stretch: Stretch, vocab_size: int, efficiency: Efficiency
) -> StretchEstimate:
    shape, frozen = stretch.shape, stretch.frozen
    packs = shape.micro_batch_size
    pictures, lengths = stretch.pictures(packs), stretch.lengths(packs)
    batch = stretch.batch()
    return StretchEstimate(
        stretch,
        step_time(config, vocab_size, layout, shape, pictures, lengths, hardware, efficiency, frozen),
        memory_by_stage(config, vocab_size, layout, shape, pictures, frozen),
        step_flops(config.model, vocab_size, batch, frozen),
        recomputed_flops(config.model, batch, layout, frozen),
    )
