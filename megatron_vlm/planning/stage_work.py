"""Seconds of each pass of a micro-batch through each chunk of a pipeline, and what they are made of."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from megatron_vlm.config.run import RunConfig
from megatron_vlm.config.steps import StepShape
from megatron_vlm.planning.activations import Kernels, value_bytes
from megatron_vlm.planning.communication import (
    context_row_bytes,
    encoder_layer_bytes,
    picture_row_bytes,
    stage_border_bytes,
)
from megatron_vlm.planning.edge_layers import chunk_layers
from megatron_vlm.planning.efficiency import Efficiency
from megatron_vlm.planning.flops import Forward, pictures_teach, projector_forward, vision_forward
from megatron_vlm.planning.hardware import Hardware
from megatron_vlm.planning.layer_work import layer_passes
from megatron_vlm.planning.layout import Layout
from megatron_vlm.planning.memory import encoded_pictures
from megatron_vlm.planning.pipeline_simulator import Times
from megatron_vlm.planning.work_clock import LAYER_KERNELS, Clock, Work


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
    positions = layout.positions(shape)
    size = value_bytes(layout.precision)
    vision_learns, projector_learns = pictures_teach(pictures, bool(shape.features), frozen)
    below = vision_learns or projector_learns
    learns = "language" not in frozen
    chunks = chunk_layers(layout, config.model.language.num_layers)
    forward, backward = layer_passes(config, layout, shape, lengths, clock, learns, below, kernels, chunks)
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


def _head(
    config: RunConfig, vocab_size: int, layout: Layout, positions: int, clock: Clock, learns: bool, below: bool
) -> tuple[Work, Work]:
    """The output layer and the loss, whose logits are read and written some times in fp32. Beside low-rank updates the
    output layer has no gradient of its own."""
    flops = 2.0 * positions * config.model.language.hidden_size * vocab_size
    logits = positions * vocab_size / layout.tensor
    passes = 20 + (12 if config.optimizer.z_loss else 0)
    forward = Work(head=clock.matrices(flops, layout.tensor) + clock.stream(logits * passes))
    if not (learns or below):
        return forward, Work()
    own = learns and not config.model.lora.rank
    return forward, Work(head=clock.matrices(flops * (1 + own), layout.tensor) + clock.stream(logits * passes / 2))


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
    shown = pictures * shape.image_tokens
    rows = picture_row_bytes(model, layout, shown, size) / link
    rows += clock.context_exchange(context_row_bytes(model, layout, shown, size))
    gap = layers * clock.efficiency.kernel_gap

    def seconds(part: Forward) -> float:
        # the patch embedding is whole on every rank
        inside = clock.encoder((part.matrices + part.attention) * mine, split)
        return inside + clock.encoder(part.first * mine, 1 if part is encoder else split)

    encoding = 0.0 if shape.features else seconds(encoder)
    forward = encoding + seconds(projector) + clock.stream(streamed) + exchanged + LAYER_KERNELS[0] * gap + rows
    backward = 0.0
    if vision_learns:
        backward += 2 * seconds(encoder) + 2 * clock.stream(streamed) + exchanged + LAYER_KERNELS[1] * gap
        if layout.recompute_vision:
            backward += seconds(encoder) + clock.stream(streamed) + exchanged + LAYER_KERNELS[0] * gap
    if vision_learns or projector_learns:
        backward += seconds(projector) * (projector_learns + vision_learns) + rows
    return Work(encoder=forward), Work(encoder=backward)
