"""Seconds of the language layers' passes over a micro-batch.

Context-parallel ranks divide its positions: each has its part of everything that is counted a position, and of attention.
That part is taken for an equal one. Of 2n pieces the dearest is dealt with the cheapest (`models.context_row`): one document
that fills the row gives every rank as many pairs of queries and keys, and many documents nearly so.
"""

from __future__ import annotations

from megatron_vlm.config.model import ModelConfig
from megatron_vlm.config.run import RunConfig
from megatron_vlm.config.steps import StepShape
from megatron_vlm.planning.activations import Kernels, value_bytes
from megatron_vlm.planning.communication import context_layer_bytes, language_layer_bytes
from megatron_vlm.planning.edge_layers import ChunkLayers
from megatron_vlm.planning.flops import language_forward
from megatron_vlm.planning.layout import Layout
from megatron_vlm.planning.parameters import Count, low_rank_sides
from megatron_vlm.planning.recomputation import layer_again, layers_again, one_layer
from megatron_vlm.planning.work_clock import LAYER_KERNELS, Clock, Work

#: kernels of a low-rank update, forward and backward: products, a scaling, a sum
_UPDATE_KERNELS = (4, 6)


def layer_passes(
    config: RunConfig,
    layout: Layout,
    shape: StepShape,
    lengths: tuple[int, ...],
    clock: Clock,
    learns: bool,
    below: bool,
    kernels: Kernels,
    chunks: list[list[ChunkLayers]],
) -> tuple[list[list[Work]], list[list[Work]]]:
    """Of the language layers of each chunk: forward, and backward with what is computed again."""

    def of_kind(in_bf16: bool) -> tuple[list[list[Work]], list[list[Work]]]:
        there, back, again = _layer(config, layout, shape, lengths, clock, learns, below, kernels, in_bf16)

        def number(layers: ChunkLayers) -> int:
            return layers.in_bf16 if in_bf16 else layers.others

        forward = [[there * number(chunk) for chunk in stage] for stage in chunks]
        backward = [
            [back * number(chunk) + again * number(chunk.first(layers_again(layout, chunk.count))) for chunk in stage]
            for stage in chunks
        ]
        return forward, backward

    found = of_kind(False)
    if not any(chunk.in_bf16 for stage in chunks for chunk in stage):
        return found
    forward, backward = (
        [[a + b for a, b in zip(*stages, strict=True)] for stages in zip(*both, strict=True)]
        for both in zip(found, of_kind(True), strict=True)
    )
    return forward, backward


def _layer(
    config: RunConfig,
    layout: Layout,
    shape: StepShape,
    lengths: tuple[int, ...],
    clock: Clock,
    learns: bool,
    below: bool,
    kernels: Kernels,
    in_bf16: bool,
) -> tuple[Work, Work, Work]:
    """Of one language layer: forward, backward, and what it computes again in its backward pass where it recomputes.
    `in_bf16`: of one at an end of the model that stays so beside FP8."""
    model, tensor, size = config.model, layout.tensor, value_bytes(layout.precision)
    positions = layout.positions(shape)
    counted = language_forward(one_layer(model), 0, positions, lengths)
    low = _low_rank(model, layout, positions)
    scores, attention = 0.0, counted.attention / layout.context
    if kernels == "unfused":  # whole squares, then masked; scores are written and read between the products
        attention = 2 * 2 * positions * shape.sequence_length * model.language.hidden_size
        scores = positions * shape.sequence_length * model.language.num_attention_heads / tensor * 13
    streamed = _streamed(config, layout, positions, size)
    beside = _streamed_beside(model, layout, positions, size)
    there, back = language_layer_bytes(model, layout, positions, size)
    # as much backward, where gradients of gathered keys and values are reduced and scattered
    gathered = clock.context_exchange(context_layer_bytes(model, layout, positions, size))
    gap, updates = clock.efficiency.kernel_gap, len(low_rank_sides(model))
    forward = Work(
        matrices=clock.layer_matrices(counted.matrices + low, in_bf16),
        attention=clock.attention(attention, tensor) + clock.stream(scores),
        streaming=clock.stream(streamed + beside[0]) + (LAYER_KERNELS[0] + updates * _UPDATE_KERNELS[0]) * gap,
        exchange=clock.tensor_exchange(there),
        context=gathered,
    )
    if not (learns or below):
        return forward, Work(), Work()
    # flash attention makes its scores again: five products backward for two forward
    products = 2.0 if kernels == "unfused" else 2.5
    backward = Work(
        # the matrices beside low-rank updates are frozen: these learn instead
        matrices=clock.layer_matrices(counted.matrices * (1 + (learns and not updates)) + low * (1 + learns), in_bf16),
        attention=clock.attention(attention * products, tensor) + clock.stream(2 * scores),
        streaming=clock.stream(2 * streamed + beside[1]) + (LAYER_KERNELS[1] + updates * _UPDATE_KERNELS[1]) * gap,
        exchange=clock.tensor_exchange(back),
        context=gathered,
    )
    if layout.recompute == "full":
        return forward, backward, forward
    again = layer_again(model, layout, positions, lengths)
    attention_again = Work(attention=forward.attention, context=gathered) if again.attention else Work()
    return forward, backward, attention_again + Work(matrices=clock.layer_matrices(again.matrices, in_bf16))


def _low_rank(model: ModelConfig, layout: Layout, positions: int) -> int:
    """Operations of a layer's low-rank updates, as many as tensor-parallel ranks would share: what each of them does for all
    positions counts for each."""
    sides = sum(low_rank_sides(model).values(), Count())
    whole = 1 if layout.sequence_parallel else layout.tensor
    return 2 * positions * model.lora.rank * (sides.split + sides.whole * whole)


def _streamed(config: RunConfig, layout: Layout, positions: int, size: int) -> float:
    """Bytes that a layer's kernels between its products read and write forward, on one rank that has `positions`."""
    language = config.model.language
    shared = layout.tensor if layout.sequence_parallel else 1
    up = 2 if language.gated else 1
    queries_keys = (language.num_attention_heads + language.query_groups) * language.head_dim
    around = 10 * language.hidden_size / shared  # two norms and two sums into the residual
    inside = (up + 1) * language.ffn_width + (4 if language.qk_layernorm else 2) * queries_keys
    return positions * size * (around + inside / layout.tensor)


def _streamed_beside(model: ModelConfig, layout: Layout, positions: int, size: int) -> tuple[float, float]:
    """The same of a layer's low-rank updates, forward and backward. What B gives is scaled (one read, one write) and added
    to what the matrix gives; backward it is scaled alone, and what A reads gets the sum of two gradients."""
    into = out = 0.0
    for target, sides in low_rank_sides(model).items():
        split, whole = sides.split / layout.tensor, sides.whole / (layout.tensor if layout.sequence_parallel else 1)
        by_rows = target in ("qkv", "fc1")
        into, out = into + (whole if by_rows else split), out + (split if by_rows else whole)
    return positions * size * 5 * out, positions * size * (2 * out + 3 * into)
