"""Memory of a rank, item by item, and whether it fits."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from functools import cache
from math import ceil

from megatron_vlm.config.run import RunConfig
from megatron_vlm.config.steps import StepShape
from megatron_vlm.planning.activations import (
    Kernels,
    bytes_a_position,
    encoder_bytes,
    head_keeps,
    language_layer_keeps,
    value_bytes,
)
from megatron_vlm.planning.edge_layers import ChunkLayers, chunk_layers
from megatron_vlm.planning.flops import pictures_teach
from megatron_vlm.planning.layout import Layout, Recompute
from megatron_vlm.planning.parameters import layer_matrices, rank_parameters, rank_trained_parameters
from megatron_vlm.planning.recomputation import layers_again
from megatron_vlm.planning.schedule_order import peak_in_flight

#: bytes a position of ids, labels, place (int64), loss mask (fp32), picture row (int32) and two modalities (uint8)
_BATCH_BYTES = 8 + 8 + 8 + 4 + 4 + 2


@dataclass(frozen=True)
class RankMemory:
    """Bytes on each rank of a pipeline stage, at its peak.

    `activations`: of language layers, all micro-batches in flight. `encoder`: of encoder and projector, and the picture rows
    that wait. `logits`: of the final norm, the output layer and the loss. `batches`: the packed arrays and pictures of a
    step, or the features that are read in their place: the encoder's weights are there all the same, since the run compares
    them with those that the features are of. Context-parallel ranks each have those of a whole micro-batch. `working`: one
    layer's intermediates, alive while it runs.
    """

    stage: int
    weights: float
    gradients: float
    optimizer: float
    activations: float
    encoder: float
    logits: float
    batches: float
    working: float

    @property
    def total(self) -> float:
        return sum(getattr(self, field.name) for field in fields(self) if field.name != "stage")

    def items(self) -> dict[str, float]:
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "stage"}


def state_bytes(trained: int, layout: Layout) -> tuple[float, float]:
    """Gradients and optimiser state of a rank with so many trained parameters.

    Gradients are reduced and kept in fp32. Adam has two fp32 moments; where weights are not fp32 also a fp32 copy of them. A
    distributed optimiser shares that over all ranks that have the same parameters, data- and context-parallel ones.
    """
    state = trained * (8 if layout.precision == "fp32" else 12)
    return trained * 4.0, state / (layout.replicas if layout.distributed_optimizer else 1)


def weight_bytes(parameters: dict[str, int], layout: Layout, config: RunConfig, stage: int) -> float:
    """Weights of a rank. FP8 keeps bf16 weights, and of the matrices of language layers that are in FP8 two fp8 copies, one
    transposed."""
    whole = sum(parameters.values()) * float(value_bytes(layout.precision))
    if layout.precision == "fp8":
        layers = sum(chunk.others for chunk in chunk_layers(layout, config.model.language.num_layers)[stage])
        whole += 2 * layer_matrices(config.model).on_rank(layout.tensor) * layers
    return whole


def encoded_pictures(layout: Layout, pictures: float) -> float:
    """Of a micro-batch's pictures, those that one rank encodes; whole pictures, so that the busiest has at least one.
    Context-parallel ranks share them, on top of whom `parallel.vision` names."""
    return max(pictures / (layout.encoding_ranks * layout.context), min(1.0, pictures))


def rank_memory(
    config: RunConfig,
    vocab_size: int,
    layout: Layout,
    shape: StepShape,
    stage: int,
    pictures: float,
    frozen: Iterable[str] = (),
    kernels: Kernels = "fused",
) -> RankMemory:
    """Of each rank of a pipeline stage in steps of `shape`, with `pictures` a micro-batch (a mean).

    `vocab_size` is the padded one. `frozen` are modules without gradients.
    """
    frozen = set(frozen)
    model, precision, tensor = config.model, layout.precision, layout.tensor
    parameters = rank_parameters(model, vocab_size, layout, stage)
    gradients, optimizer = state_bytes(rank_trained_parameters(model, vocab_size, layout, stage, frozen), layout)
    positions = layout.positions(shape)
    micro_batches = max(1, shape.global_batch_size // (shape.micro_batch_size * layout.data))
    chunks = chunk_layers(layout, model.language.num_layers)[stage]

    @cache
    def kept(recompute: Recompute, precision: str) -> float:
        """Of one layer in one micro-batch."""
        length, again = shape.sequence_length, layout.recompute_modules
        keeps = language_layer_keeps(model, kernels, precision, recompute, length, again, layout.kept_keys(shape))
        return positions * bytes_a_position(keeps, tensor, layout.sequence_parallel)

    def of_layers(layers: ChunkLayers, recompute: Recompute) -> float:
        found = layers.others * kept(recompute, precision)
        return found + layers.in_bf16 * kept(recompute, "bf16") if layers.in_bf16 else found

    def of_chunk(layers: ChunkLayers) -> float:
        if layout.recompute != "full":
            return of_layers(layers.without_first(layout.offload_layers), layout.recompute)
        again = layers_again(layout, layers.count)
        inputs = again if layout.recompute_method == "block" else ceil(again / layout.recompute_layers)
        return inputs * kept("full", precision) + of_layers(layers.without_first(again), "none")

    def of_one(recompute: Recompute) -> float:
        """Of the stage's layer that keeps most; in bf16 that is more than in FP8."""
        return kept(recompute, "bf16" if any(chunk.in_bf16 for chunk in chunks) else precision)

    def in_flight(sizes: list[float]) -> float:
        return peak_in_flight(stage, layout.pipeline, layout.virtual, micro_batches, sizes)

    # nothing is kept where nothing at or below a layer learns
    vision_learns, projector_learns = pictures_teach(pictures, bool(shape.features), frozen)
    learns = "language" not in frozen or vision_learns or projector_learns
    activations = in_flight([of_chunk(layers) for layers in chunks]) if learns else 0.0
    encoder = 0.0
    hidden_row = model.language.hidden_size * value_bytes(precision)
    if pictures and (stage == 0 or layout.vision == "data_all_stages"):
        mine = encoded_pictures(layout, pictures)
        one = encoder_bytes(
            model,
            kernels,
            precision,
            layout.encoder_split,
            shape.image_size,
            vision_learns,
            vision_learns or projector_learns,
            layout.recompute_vision,
            bool(shape.features),
        )
        # spread over all stages, pictures of a whole step are encoded before its first micro-batch and wait for its end
        waiting = (
            encoded_pictures(layout, pictures * micro_batches) * one
            if layout.vision == "data_all_stages"
            else in_flight([mine * one] + [0.0] * (len(chunks) - 1))
        )
        rows = pictures * shape.image_tokens * hidden_row * (micro_batches if layout.vision == "data_all_stages" else 1)
        encoder = waiting + (rows if stage == 0 else 0.0)
    logits = 0.0
    if stage == layout.pipeline - 1:
        keeps = head_keeps(model, vocab_size, kernels, precision, config.optimizer.z_loss > 0)
        logits = positions * bytes_a_position(keeps, tensor, layout.sequence_parallel)
        if kernels != "host":  # the logits themselves, and the copy that the loss works in
            logits += 2 * positions * vocab_size / tensor * value_bytes(precision)
    batches = micro_batches * float(shape.micro_batch_size * shape.sequence_length) * _BATCH_BYTES
    if stage == 0 or layout.vision == "data_all_stages":
        batches += micro_batches * pictures * shape.picture_bytes
        if shape.features and layout.vision == "data_all_stages" and projector_learns and precision != "fp32":
            batches += micro_batches * pictures * shape.picture_bytes  # put together for the step, and kept to learn from
    # gradients of the widest intermediate, and what is computed again at once; an offloaded layer comes back before its use
    widest = max(2 * model.language.ffn_width / tensor, model.language.hidden_size)
    if layout.context > 1:  # gradients of the keys and values of all positions, before they are reduced and scattered
        widest = max(widest, model.language.query_groups * model.language.head_dim / tensor * layout.context)
    working = 2 * positions * widest * value_bytes(precision) + _at_once(layout) * of_one("none")
    if layout.recompute == "selective":
        working += of_one("none") - of_one("selective")
    return RankMemory(
        stage,
        weight_bytes(parameters, layout, config, stage),
        gradients,
        optimizer,
        activations,
        encoder,
        logits,
        batches,
        working,
    )


def _at_once(layout: Layout) -> int:
    """Whole layers whose activations are there for a moment, beside those that are kept."""
    if layout.recompute == "full":
        return layout.recompute_layers if layout.recompute_method == "uniform" else 1
    return 1 if layout.offload_layers else 0


def memory_by_stage(
    config: RunConfig,
    vocab_size: int,
    layout: Layout,
    shape: StepShape,
    pictures: float,
    frozen: Iterable[str] = (),
    kernels: Kernels = "fused",
) -> tuple[RankMemory, ...]:
    """`rank_memory` of every stage; pictures of a micro-batch are rounded up, as one that exists is encoded whole."""
    whole = ceil(pictures) if pictures else 0
    return tuple(
        rank_memory(config, vocab_size, layout, shape, stage, whole, frozen, kernels) for stage in range(layout.pipeline)
    )
