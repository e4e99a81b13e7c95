"""DINOv2's layer scale as megatron-core's bias-dropout-add step of a layer."""

from __future__ import annotations

from collections.abc import Callable

import torch
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor


class LayerScaleAdd(MegatronModule):
    """residual + gamma * (x + bias), with a learnt gamma a channel (Touvron et al. 2021, arXiv 2103.17239).

    Stands where megatron-core's `get_bias_dropout_add` does and is called the same way. Dropout is not applied.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config=config)
        self.gamma = torch.nn.Parameter(torch.ones(config.hidden_size, dtype=config.params_dtype))

    def forward(self, training: bool, fused: bool) -> Callable[[tuple[Tensor, Tensor | None], Tensor, float], Tensor]:
        def add(x_with_bias: tuple[Tensor, Tensor | None], residual: Tensor, dropout: float) -> Tensor:
            x, bias = x_with_bias
            return residual + self.gamma * (x if bias is None else x + bias)

        return add
