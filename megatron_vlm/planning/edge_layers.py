"""Language layers at the model's two ends that stay in bf16 where the others are in FP8, as they lie in pipeline chunks.

megatron-core counts them over the whole model (`fp8_utils.is_first_last_bf16_layer`), whatever the stages; chunks follow
each other through all stages before a stage's next chunk begins.
"""

from __future__ import annotations

from dataclasses import dataclass

from megatron_vlm.config.run import RunConfig
from megatron_vlm.planning.layout import Layout


@dataclass(frozen=True, slots=True)
class ChunkLayers:
    """Language layers of one pipeline chunk, in order: `before` in bf16, then those of the layout's precision, then `after`
    in bf16. Both are 0 where the layout is not in FP8."""

    count: int
    before: int = 0
    after: int = 0

    @property
    def in_bf16(self) -> int:
        return self.before + self.after

    @property
    def others(self) -> int:
        return self.count - self.in_bf16

    def first(self, count: int) -> ChunkLayers:
        """The first `count` of them."""
        count = min(count, self.count)
        return ChunkLayers(count, min(count, self.before), max(0, count - (self.count - self.after)))

    def without_first(self, count: int) -> ChunkLayers:
        """Those that `first` leaves."""
        gone = self.first(count)
        return ChunkLayers(self.count - gone.count, self.before - gone.before, self.after - gone.after)


def most_stages(config: RunConfig) -> int:
    """Pipeline stages that a model allows: one with a layer each, and no fewer than an end of it has in bf16
    (`precision_problems` refuses others)."""
    edges = config.precision.first_layers_in_bf16, config.precision.last_layers_in_bf16
    return config.model.language.num_layers // max(1, *edges)


def chunk_layers(layout: Layout, count: int) -> list[list[ChunkLayers]]:
    """Of a model of `count` language layers: `[stage][chunk]`."""
    stages = layout.layers(count)
    if layout.precision != "fp8" or not (layout.first_in_bf16 or layout.last_in_bf16):
        return [[ChunkLayers(layers) for layers in stage] for stage in stages]
    found: list[list[ChunkLayers]] = [[] for _ in stages]
    offset, last = 0, count - layout.last_in_bf16
    for chunk in range(layout.virtual):
        for stage, layers in enumerate(stages):
            before = min(layers[chunk], max(0, layout.first_in_bf16 - offset))
            offset += layers[chunk]
            found[stage].append(ChunkLayers(layers[chunk], before, min(layers[chunk] - before, max(0, offset - last))))
    return found
