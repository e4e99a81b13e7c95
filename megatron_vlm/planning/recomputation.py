"""Operations that activation recomputation adds: hardware FLOPs are `step_flops` and these."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from megatron_vlm.config.model import ModelConfig
from megatron_vlm.planning.flops import BatchShape, language_forward
from megatron_vlm.planning.layout import Recompute


def recomputed_flops(model: ModelConfig, batch: BatchShape, recompute: Recompute, frozen: Iterable[str] = ()) -> int:
    """Forward operations that a step makes a second time. Encoder, projector and output layer are not recomputed.

    full: every language layer. selective: attention alone. Layers that do not learn, with nothing below them that does, have
    no backward pass, and none of them is made again.
    """
    frozen = set(frozen)
    if "language" in frozen and (batch.pictures == 0 or {"vision", "projector"} <= frozen):
        return 0
    layers = language_forward(model, 0, batch.positions, batch.document_lengths)
    return {"none": 0, "selective": layers.attention, "full": layers.total}[recompute]


def one_layer(model: ModelConfig) -> ModelConfig:
    """The same model with a single language layer, to count one."""
    return replace(model, language=replace(model.language, num_layers=1))
