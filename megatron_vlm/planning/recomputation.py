"""Operations that activation recomputation adds: hardware FLOPs are `step_flops` and these."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from megatron_vlm.config.model import ModelConfig
from megatron_vlm.planning.flops import (
    BatchShape,
    Forward,
    language_forward,
    lora_forward,
    mlp_forward,
    pictures_teach,
    vision_forward,
)
from megatron_vlm.planning.layout import Layout


def layers_again(layout: Layout, layers: int) -> int:
    """Of a pipeline chunk's language layers, those that may compute something again (`layer_again` says what): all, or the
    first ones of a block."""
    blocks = layout.recompute == "full" and layout.recompute_method == "block"
    return min(layers, layout.recompute_layers) if blocks else layers


def layer_again(model: ModelConfig, layout: Layout, positions: int, lengths: Iterable[int]) -> Forward:
    """Operations of one language layer that recomputes: all of it (full), or its modules (selective). Norms multiply no
    matrices."""
    one = one_layer(model)
    whole = language_forward(one, 0, positions, lengths)
    if layout.recompute == "full":
        return Forward(0, whole.matrices + lora_forward(one, positions).total, whole.attention)
    modules = layout.recompute_modules if layout.recompute == "selective" else ()
    matrices = 0
    if "mlp" in modules:
        matrices = mlp_forward(model.language, positions) + lora_forward(one, positions, ("fc1", "fc2")).total
    return Forward(0, matrices, whole.attention if "core_attn" in modules else 0)


def recomputed_flops(model: ModelConfig, batch: BatchShape, layout: Layout, frozen: Iterable[str] = ()) -> int:
    """Forward operations that a step makes a second time. Projector and output layer are not recomputed.

    Layers that do not learn, with nothing below them that does, have no backward pass, and none of them is made again.
    """
    frozen = set(frozen)
    vision_learns, projector_learns = pictures_teach(batch.pictures, batch.encoded, frozen)
    again = 0
    if vision_learns and layout.recompute_vision:
        encoder = vision_forward(model, batch.pictures, batch.image_size, batch.patches)
        again += encoder.matrices + encoder.attention
    if "language" in frozen and not (vision_learns or projector_learns):
        return again
    count = sum(layers_again(layout, chunk) for stage in layout.layers(model.language.num_layers) for chunk in stage)
    return again + count * layer_again(model, layout, batch.positions, batch.document_lengths).total


def one_layer(model: ModelConfig) -> ModelConfig:
    """The same model with a single language layer, to count one."""
    return replace(model, language=replace(model.language, num_layers=1))
