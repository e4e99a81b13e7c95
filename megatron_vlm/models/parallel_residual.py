"""A layer whose attention and MLP both read its input: x + attention(norm(x)) + mlp(norm'(x))."""

from __future__ import annotations

from typing import Any

from megatron.core.transformer.transformer_layer import TransformerLayer
from torch import Tensor


class ParallelResidualLayer(TransformerLayer):
    """megatron-core's layer with the residual of GPT-J and GPT-NeoX (Black et al. 2022, arXiv 2204.06745, section 2.1).

    Each branch has a norm of its own.
    """

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """As TransformerLayer.forward: hidden states `[s, b, h]` first; the same shape, and no context."""
        kwargs.pop("dynamic_inference_decode_only", None)
        x: Tensor = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        attended, context = self._forward_attention(*args, **kwargs)
        output = self.mlp(self.pre_mlp_layernorm(x))
        add = self.mlp_bda(self.training, self.config.bias_dropout_fusion)
        return add(output, attended, self.hidden_dropout), context
