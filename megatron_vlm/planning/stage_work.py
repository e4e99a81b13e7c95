"""Seconds of each pass of a micro-batch through each chunk of a pipeline, and what they are made of."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from megatron_vlm.config.run import RunConfig
from megatron_vlm.config.steps import StepShape
from megatron_vlm.planning.activations import Kernels, value_bytes
from megatron_vlm.planning.communication import (
    encoder_layer_bytes,
    language_layer_bytes,
    links,
    picture_row_bytes,
    stage_border_bytes,
)
from megatron_vlm.planning.edge_layers import ChunkLayers, chunk_layers
from megatron_vlm.planning.efficiency import Efficiency
from megatron_vlm.planning.flops import Forward, language_forward, pictures_teach, projector_forward, vision_forward
from megatron_vlm.planning.hardware import Hardware
from megatron_vlm.planning.layout import Layout
from megatron_vlm.planning.memory import encoded_pictures
from megatron_vlm.planning.pipeline_simulator import Times
from megatron_vlm.planning.recomputation import layer_again, layers_again, one_layer

#: kernels of a layer, forward and backward, for the gaps between them
_KERNELS = (16, 26)


@dataclass(frozen=True)
class Work:
    """Seconds of one pass by what they go to."""

    matrices: float = 0.0
    attention: float = 0.0
    streaming: float = 0.0
    exchange: float = 0.0
    head: float = 0.0
    encoder: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))

    def __mul__(self, times: float) -> Work:
        return Work(*(getattr(self, name) * times for name in self.__dataclass_fields__))

    @property
    def total(self) -> float:
        return sum(getattr(self, name) for name in self.__dataclass_fields__)


@dataclass(frozen=True)
class PipelineWork:
    """`[stage][chunk]` passes; `before` and `after` are of encoding that a step does outside of the pipeline's passes."""

    forward: list[list[Work]] = field(default_factory=list)
    backward: list[list[Work]] = field(default_factory=list)
    transfer: float = 0.0
    before: float = 0.0
    after: float = 0.0

    @property
    def times(self) -> Times:
        return Times(
            [[work.total for work in chunks] for chunks in self.forward],
            [[work.total for work in chunks] for chunks in self.backward],
            self.transfer,
        )

    def busiest(self) -> int:
        times = self.times
        return max(range(times.stages), key=times.busy)

    def of_stage(self, stage: int) -> Work:
        """A micro-batch's forward and backward passes through a stage."""
        return sum((*self.forward[stage], *self.backward[stage]), Work())


class Clock:
    """Turns operations and bytes of one layout on one kind of hardware into seconds."""

    def __init__(self, layout: Layout, hardware: Hardware, efficiency: Efficiency) -> None:
        self.layout, self.efficiency = layout, efficiency
        self.links = links(layout, hardware, efficiency)
        half = "fp32" if layout.precision == "fp32" else "bf16"
        self.peak = hardware.peak_of(half)
        eight = layout.precision == "fp8"
        # what runs in fp8 has another peak and its own share of it
        self.layer_rate = hardware.peak_of(layout.precision) * (efficiency.matrix_fp8 if eight else efficiency.matrix)
        self.half_rate = self.peak * efficiency.matrix
        self.bandwidth = hardware.memory_bandwidth * efficiency.memory

    def layer_matrices(self, flops: float, in_bf16: bool = False) -> float:
        """Of a language layer. `in_bf16`: of one that stays so where the layout is in FP8."""
        return flops / self.layout.tensor / (self.half_rate if in_bf16 else self.layer_rate)

    def matrices(self, flops: float, split: int) -> float:
        return flops / split / (self.peak * self.efficiency.matrix)

    def attention(self, flops: float, split: int) -> float:
        return flops / split / (self.peak * self.efficiency.attention)

    def encoder(self, flops: float, split: int) -> float:
        return flops / split / (self.peak * self.efficiency.vision)

    def stream(self, bytes_: float) -> float:
        return bytes_ / self.bandwidth

    def tensor_exchange(self, bytes_: float) -> float:
        hidden = self.efficiency.tensor_overlap if self.layout.overlap_tensor else 0.0
        return bytes_ / self.links.tensor * (1 - hidden)


def pipeline_work(
    config: RunConfig,
    vocab_size: int,
    layout: Layout,
    shape: StepShape,
    pictures: float,
    lengths: Iterable[int],
    hardware: Hardware,
    efficiency: Efficiency,
    frozen: Iterable[str] = (),
    kernels: Kernels = "fused",
) -> PipelineWork:
    """Of one micro-batch of `shape` with `pictures` (a mean) and documents of `lengths`.

    A frozen encoder runs forward only, and not at all where its features are read. Spread over all stages, encoding is a
    phase of its own before the first micro-batch, and where it learns one after the last, alike on every rank.
    """
    frozen, lengths = set(frozen), tuple(lengths)
    clock = Clock(layout, hardware, efficiency)
    positions = shape.micro_batch_size * shape.sequence_length
    size = value_bytes(layout.precision)
    vision_learns, projector_learns = pictures_teach(pictures, bool(shape.features), frozen)
    below = vision_learns or projector_learns
    learns = "language" not in frozen
    chunks = chunk_layers(layout, config.model.language.num_layers)
    forward, backward = _layers(config, layout, shape, lengths, clock, learns, below, kernels, chunks)
    head_forward, head_backward = _head(config, vocab_size, layout, positions, clock, learns, below)
    forward[-1][-1] += head_forward
    backward[-1][-1] += head_backward
    before = after = 0.0
    if pictures:
        encode, learn = _encoder(config, layout, shape, pictures, clock, vision_learns, projector_learns)
        if layout.vision == "data_all_stages":
            count = max(1, shape.global_batch_size // (shape.micro_batch_size * layout.data))
            # over a whole step, shares of the ranks even out to a picture
            scale = encoded_pictures(layout, pictures * count) / encoded_pictures(layout, pictures)
            before, after = encode.total * scale, learn.total * scale
        else:
            forward[0][0] += encode
            backward[0][0] += learn
    transfer = 0.0
    if layout.pipeline > 1:
        transfer = stage_border_bytes(config.model, layout, positions, size) / clock.links.pipeline
    return PipelineWork(forward, backward, transfer, before, after)


def _layers(
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
    positions = shape.micro_batch_size * shape.sequence_length
    counted = language_forward(one_layer(model), 0, positions, lengths)
    scores, attention = 0.0, float(counted.attention)
    if kernels == "unfused":  # whole squares, then masked; scores are written and read between the products
        attention = 2 * 2 * positions * shape.sequence_length * model.language.hidden_size
        scores = positions * shape.sequence_length * model.language.num_attention_heads / tensor * 13
    streamed = _streamed(config, layout, positions, size)
    there, back = language_layer_bytes(model, layout, positions, size)
    gap = clock.efficiency.kernel_gap
    forward = Work(
        matrices=clock.layer_matrices(counted.matrices, in_bf16),
        attention=clock.attention(attention, tensor) + clock.stream(scores),
        streaming=clock.stream(streamed) + _KERNELS[0] * gap,
        exchange=clock.tensor_exchange(there),
    )
    if not (learns or below):
        return forward, Work(), Work()
    # flash attention makes its scores again: five products backward for two forward
    products = 2.0 if kernels == "unfused" else 2.5
    backward = Work(
        matrices=clock.layer_matrices(counted.matrices * (1 + learns), in_bf16),
        attention=clock.attention(attention * products, tensor) + clock.stream(2 * scores),
        streaming=clock.stream(2 * streamed) + _KERNELS[1] * gap,
        exchange=clock.tensor_exchange(back),
    )
    if layout.recompute == "full":
        return forward, backward, forward
    again = layer_again(model, layout, positions, lengths)
    attended = forward.attention if again.attention else 0.0
    return forward, backward, Work(matrices=clock.layer_matrices(again.matrices, in_bf16), attention=attended)


def _streamed(config: RunConfig, layout: Layout, positions: int, size: int) -> float:
    """Bytes that a layer's kernels between its products read and write forward, on one rank."""
    language = config.model.language
    shared = layout.tensor if layout.sequence_parallel else 1
    up = 2 if language.gated else 1
    queries_keys = (language.num_attention_heads + language.query_groups) * language.head_dim
    around = 10 * language.hidden_size / shared  # two norms and two sums into the residual
    inside = (up + 1) * language.ffn_width + (4 if language.qk_layernorm else 2) * queries_keys
    return positions * size * (around + inside / layout.tensor)


def _head(
    config: RunConfig, vocab_size: int, layout: Layout, positions: int, clock: Clock, learns: bool, below: bool
) -> tuple[Work, Work]:
    """The output layer and the loss, whose logits are read and written some times in fp32."""
    flops = 2.0 * positions * config.model.language.hidden_size * vocab_size
    logits = positions * vocab_size / layout.tensor
    passes = 20 + (12 if config.optimizer.z_loss else 0)
    forward = Work(head=clock.matrices(flops, layout.tensor) + clock.stream(logits * passes))
    if not (learns or below):
        return forward, Work()
    return forward, Work(head=clock.matrices(flops * (1 + learns), layout.tensor) + clock.stream(logits * passes / 2))


def _encoder(
    config: RunConfig,
    layout: Layout,
    shape: StepShape,
    pictures: float,
    clock: Clock,
    vision_learns: bool,
    projector_learns: bool,
) -> tuple[Work, Work]:
    """Encoder and projector over a micro-batch's pictures, on the rank that has most of them. Where features are read only
    the projector runs."""
    model, size, split = config.model, value_bytes(layout.precision), layout.encoder_split
    mine = encoded_pictures(layout, pictures)
    patches = (shape.image_size // model.vision.patch_size) ** 2
    encoder, projector = vision_forward(model, 1, shape.image_size), projector_forward(model, 1, shape.image_size)
    layers, streamed, moved = 0, 0.0, 0.0
    for vision in () if shape.features else model.encoders:
        count, tokens = vision.num_layers - vision.skip_last_layers, mine * (patches + vision.prefix_tokens)
        layers += count
        inside = (3 if vision.gated else 2) * vision.ffn_width / split
        streamed += count * tokens * size * (10 * vision.hidden_size + inside)
        moved += count * encoder_layer_bytes(vision, layout, tokens, size)
    exchanged = clock.tensor_exchange(moved)
    link = clock.links.pipeline if layout.vision == "data_all_stages" and layout.pipeline > 1 else clock.links.tensor
    rows = picture_row_bytes(model, layout, pictures * shape.image_tokens, size) / link
    gap = layers * clock.efficiency.kernel_gap

    def seconds(part: Forward) -> float:
        # the patch embedding is whole on every rank
        inside = clock.encoder((part.matrices + part.attention) * mine, split)
        return inside + clock.encoder(part.first * mine, 1 if part is encoder else split)

    encoding = 0.0 if shape.features else seconds(encoder)
    forward = encoding + seconds(projector) + clock.stream(streamed) + exchanged + _KERNELS[0] * gap + rows
    backward = 0.0
    if vision_learns:
        backward += 2 * seconds(encoder) + 2 * clock.stream(streamed) + exchanged + _KERNELS[1] * gap
        if layout.recompute_vision:
            backward += seconds(encoder) + clock.stream(streamed) + exchanged + _KERNELS[0] * gap
    if vision_learns or projector_learns:
        backward += seconds(projector) * (projector_learns + vision_learns) + rows
    return Work(encoder=forward), Work(encoder=backward)
