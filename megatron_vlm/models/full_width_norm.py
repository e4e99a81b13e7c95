"""Norms of queries and keys over all heads together, across tensor-parallel ranks."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.tensor_parallel.layers import set_tensor_model_parallel_attributes
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint
from torch import Tensor


class _SumOverRanks(torch.autograd.Function):
    """Sum over a group, and of gradients too: every rank's output depends on every rank's input."""

    @staticmethod
    def forward(ctx, x: Tensor, group: Any) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.group = group
        total = x.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[no-untyped-def]
        total = grad.clone()
        dist.all_reduce(total, group=ctx.group)
        return total, None


class FullWidthNorm(MegatronModule):
    """RMSNorm or LayerNorm (gain alone) of `[..., heads, head size]` over both last dimensions.

    As the open_lm and OLMo 2 blocks norm queries and keys before they are split into heads. Tensor-parallel ranks hold some
    heads each: moments are summed over them, the gain is split as the heads are. Moments are fp32.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float, heads: int, centred: bool) -> None:
        super().__init__(config=config)
        self.group = parallel_state.get_tensor_model_parallel_group()
        self.width, self.eps, self.centred = heads * hidden_size, eps, centred
        self.weight = torch.nn.Parameter(torch.ones(self.width // self.group.size(), dtype=config.params_dtype))
        set_tensor_model_parallel_attributes(self.weight, True, 0, 1)

    def _mean(self, x: Tensor) -> Tensor:
        total = x.sum(-1, keepdim=True)
        return (total if self.group.size() == 1 else _SumOverRanks.apply(total, self.group)) / self.width

    def forward(self, x: Tensor) -> Tensor:
        """The same shape and dtype."""
        rows = x.flatten(-2).float()
        if self.group.size() == 1:
            whole = (self.width,)
            out = (
                F.layer_norm(rows, whole, None, None, self.eps) if self.centred else F.rms_norm(rows, whole, None, self.eps)
            )
        else:
            rows = rows - self._mean(rows) if self.centred else rows
            out = rows * torch.rsqrt(self._mean(rows.square()) + self.eps)
        return (out * self.weight.float()).to(x.dtype).view_as(x)

    def sharded_state_dict(
        self,
        prefix: str = "",
        sharded_offsets: tuple[tuple[int, int, int], ...] = (),
        metadata: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """The gain, split over tensor-parallel ranks."""
        state: dict[str, Any] = make_sharded_tensors_for_checkpoint(
            self.state_dict(keep_vars=True), prefix, {"weight": 0}, sharded_offsets
        )
        return state
