"""Operations that activation recomputation adds: hardware FLOPs are `step_flops` and these."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from megatron_vlm.config.model import ModelConfig
from megatron_vlm.planning.flops import BatchShape, Forward, language_forward, vision_forward
from megatron_vlm.planning.layout import Layout


def layers_again(layout: Layout, layers: int) -> int:
    """Of a pipeline chunk's language layers, those that are computed again whole."""
    if layout.recompute != "full":
        return 0
    return min(layers, layout.recompute_layers) if layout.recompute_method == "block" else layers


def layer_again(model: ModelConfig, layout: Layout, positions: int, lengths: Iterable[int]) -> Forward:
    """Operations of one language layer that recomputes: all of it (full), or its modules (selective). Norms multiply no
    matrices."""
    whole = language_forward(one_layer(model), 0, positions, lengths)
    if layout.recompute == "full":
        return whole
    modules = layout.recompute_modules if layout.recompute == "selective" else ()
    language = model.language
    mlp = 2 * positions * language.hidden_size * language.ffn_width * (3 if language.gated else 2)
    return Forward(0, mlp * ("mlp" in modules), whole.attention * ("core_attn" in modules))


def recomputed_flops(model: ModelConfig, batch: BatchShape, layout: Layout, frozen: Iterable[str] = ()) -> int:
    """Forward operations that a step makes a second time. Projector and output layer are not recomputed.

    Layers that do not learn, with nothing below them that does, have no backward pass, and none of them is made again.
    """
    frozen = set(frozen)
    vision_learns = batch.pictures > 0 and "vision" not in frozen
    again = 0
    if vision_learns and layout.recompute_vision:
        encoder = vision_forward(model, batch.pictures, batch.image_size, batch.patches)
        again += encoder.matrices + encoder.attention
    if "language" in frozen and not vision_learns and (batch.pictures == 0 or "projector" in frozen):
        return again
    count = model.language.num_layers
    if layout.recompute == "full":
        count = sum(layers_again(layout, chunk) for stage in layout.layers(count) for chunk in stage)
    return again + count * layer_again(model, layout, batch.positions, batch.document_lengths).total


def one_layer(model: ModelConfig) -> ModelConfig:
    """The same model with a single language layer, to count one."""
    return replace(model, language=replace(model.language, num_layers=1))
