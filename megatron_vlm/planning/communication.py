"""Bytes that ranks exchange and the time it takes: rings inside a node and between nodes.

A ring of n moves (n - 1) / n of the whole through each member for a gather or a reduce-scatter, twice that for an
all-reduce (Patarasuk and Yuan 2009).
"""

from __future__ import annotations

from dataclasses import dataclass

from megatron_vlm.config.model import ModelConfig, VisionConfig
from megatron_vlm.planning.efficiency import Efficiency
from megatron_vlm.planning.hardware import Hardware
from megatron_vlm.planning.layout import Layout


@dataclass(frozen=True)
class Links:
    """Bytes a second that collectives of a layout's groups reach. `data`: of all ranks with the same part of the model."""

    tensor: float
    context: float
    data: float
    pipeline: float


def links(layout: Layout, hardware: Hardware, efficiency: Efficiency) -> Links:
    """Where groups leave a node, members in one node send through all of their ports."""
    node, network = hardware.node_bandwidth * efficiency.node, hardware.network_bandwidth * efficiency.network

    def of(group: int, in_node: int) -> float:
        return node if group <= in_node else min(node, network * in_node)

    tensor_inside = min(layout.tensor, hardware.gpus_per_node)
    context_inside = layout.context_in_node(hardware.gpus_per_node)
    replicas_inside = layout.replicas_in_node(hardware.gpus_per_node)
    whole_inside = layout.gpus <= hardware.gpus_per_node
    return Links(
        of(layout.tensor, tensor_inside),
        of(layout.context, context_inside),
        of(layout.replicas, replicas_inside),
        node if whole_inside else network,
    )


def gathered(bytes_: float, ranks: int) -> float:
    """Bytes through each member of a ring that gathers, or reduces and scatters, `bytes_` in all."""
    return bytes_ * (ranks - 1) / ranks


def language_layer_bytes(model: ModelConfig, layout: Layout, positions: int, value_bytes: int) -> tuple[float, float]:
    """Tensor-parallel traffic of one language layer, through each rank: forward, backward.

    Forward, two gathers and two reduce-scatters of `[positions, hidden]` under sequence parallelism, or two all-reduces,
    which are as much. Backward the same; gathering the inputs once more hides behind the gradient of the weights. Of each
    low-rank update `[positions, rank]` is gathered one way and scattered the other.
    """
    width = 4 * model.language.hidden_size + model.lora.rank * len(model.lora.targets)
    one = gathered(positions * width * value_bytes, layout.tensor)
    return one, one


def context_layer_bytes(model: ModelConfig, layout: Layout, positions: int, value_bytes: int) -> float:
    """Context-parallel traffic of one language layer, through each rank that has `positions`: forward, and as much backward.

    Forward, a gather of keys and values, `[positions, 2 * query groups / tensor, head]` from each rank; backward, a
    reduce-scatter of their gradients.
    """
    language = model.language
    width = 2 * language.query_groups * language.head_dim / layout.tensor
    return gathered(layout.context * positions * width * value_bytes, layout.context)


def encoder_layer_bytes(vision: VisionConfig, layout: Layout, tokens: float, value_bytes: int) -> float:
    """Of one encoder layer forward, as much again backward; nothing where each rank has the encoder whole."""
    if layout.vision != "tensor":
        return 0.0
    return 4 * gathered(tokens * vision.hidden_size * value_bytes, layout.tensor)


def picture_row_bytes(model: ModelConfig, layout: Layout, rows: float, value_bytes: int) -> float:
    """Of all `rows` of pictures, those of one context-parallel rank, which others that `parallel.vision` names encoded with
    it: gathered on the ranks of the first stage, bytes through each of these."""
    return gathered(rows / layout.context * model.language.hidden_size * value_bytes, layout.encoding_ranks)


def context_row_bytes(model: ModelConfig, layout: Layout, rows: float, value_bytes: int) -> float:
    """All `rows` of pictures, `[rows, hidden]`, gathered over context-parallel ranks; backward their gradients are reduced
    and scattered, which is as much."""
    return gathered(rows * model.language.hidden_size * value_bytes, layout.context)


def stage_border_bytes(model: ModelConfig, layout: Layout, positions: int, value_bytes: int) -> float:
    """Hidden states that a rank hands to the next stage: its own part under sequence parallelism."""
    return positions * model.language.hidden_size * value_bytes / (layout.tensor if layout.sequence_parallel else 1)
