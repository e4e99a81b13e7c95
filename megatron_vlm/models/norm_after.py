"""A norm after attention and after the MLP, as megatron-core's bias-dropout-add step of a layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor


class NormedAdd(MegatronModule):
    """residual + norm(x + bias), the order of OLMo 2 (OLMo et al. 2025, arXiv 2501.00656, section 3.1).

    Stands where megatron-core's `get_bias_dropout_add` does and is called the same way; `norm` is a layer spec's class.
    """

    def __init__(self, config: TransformerConfig, norm: Any) -> None:
        super().__init__(config=config)
        self.norm = norm(config=config, hidden_size=config.hidden_size, eps=config.layernorm_epsilon)

    def forward(self, training: bool, fused: bool) -> Callable[[tuple[Tensor, Tensor | None], Tensor, float], Tensor]:
        def add(x_with_bias: tuple[Tensor, Tensor | None], residual: Tensor, dropout: float) -> Tensor:
            x, bias = x_with_bias
            normed: Tensor = self.norm(x if bias is None else x + bias)
            return residual + F.dropout(normed, dropout, training)

        return add
