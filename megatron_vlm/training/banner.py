"""What a run says of itself before its first step."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from megatron_vlm.config.curriculum import MODULES
from megatron_vlm.config.run import RunConfig
from megatron_vlm.config.steps import Segment
from megatron_vlm.parallel.topology import Topology


def banner(config: RunConfig, topology: Topology, chunks: Sequence[torch.nn.Module]) -> str:
    """Ranks, layout and size of this rank's model, pictures, and the stages with their steps."""
    counts = {
        name: sum(p.numel() for chunk in chunks for n, p in chunk.named_parameters() if prefix in n)
        for name, prefix in MODULES.items()
    }
    here = ", ".join(f"{name} {count / 1e6:.2f}M" for name, count in counts.items())
    pictures = config.data.pictures
    lines = [
        f"{topology.world_size} rank(s) on {topology.device.type}: TP {topology.tensor_size} x PP {topology.pipeline_size} "
        f"x {f'CP {topology.context_size} x ' if topology.context_size > 1 else ''}DP {topology.data_size}"
        f"{', sequence parallel' if config.parallel.sequence_parallel else ''}; "
        f"parameters of rank 0: {here}",
        f"{config.total_steps} steps of {_sizes(config.segments)}, {config.total_tokens:,} positions",
        f"pictures: {pictures.resize}, decoded by {pictures.decoder}",
    ]
    start = 0
    for number, (stage, end) in enumerate(zip(config.curriculum.stages, config.stage_ends(), strict=True)):
        sources = ", ".join(f"{name} {weight:g}" for name, weight in stage.sources.items())
        frozen = f"; frozen: {', '.join(stage.freeze)}" if stage.freeze else ""
        ramp = f", {stage.ramp} ramp" if stage.ramp != "constant" else ""
        own = [segment for segment in config.segments if segment.shape.stage == number]
        size = f"; {_sizes(own)}" if _sizes(own) != _sizes(config.segments) else ""
        lines.append(f"  steps {start} to {end}: {stage.name} ({sources}, by {stage.measure}{ramp}{frozen}{size})")
        start = end
    return "\n".join(lines)


def _sizes(segments: Sequence[Segment]) -> str:
    """`8 x 2048`, or the span of batches and lengths: `4-8 x 1024-2048`."""
    batches = [segment.shape.global_batch_size for segment in segments]
    lengths = [segment.shape.sequence_length for segment in segments]
    return " x ".join(_span(values) for values in (batches, lengths))


def _span(values: Sequence[int]) -> str:
    low, high = min(values, default=0), max(values, default=0)
    return str(low) if low == high else f"{low}-{high}"
