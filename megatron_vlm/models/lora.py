"""Low-rank updates beside frozen matrices of the language blocks (LoRA, Hu et al. 2021, arXiv 2106.09685).

y = W x + (alpha / rank) B A x, with B zero at first. Under tensor parallelism A and B are split as W is: B of a
column-parallel matrix by rows, A of a row-parallel one by columns; the other of the two is whole on every rank. What is
exchanged besides has `rank` numbers a position.

The layers are megatron-core's own, whose class is changed in place, so that weights, names and hooks stay. Fused QKV and the
fused gate and up matrices have one A for their parts.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel.layers import (
    ColumnParallelLinear,
    RowParallelLinear,
    set_tensor_model_parallel_attributes,
)
from megatron.core.tensor_parallel.mappings import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
    reduce_from_tensor_model_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
)
from megatron.core.transformer.mlp import apply_swiglu_sharded_factory
from megatron.core.transformer.transformer_block import TransformerBlock
from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint
from torch import Tensor

from megatron_vlm.config.model import LoraConfig

Offsets = tuple[tuple[int, int, int], ...]

#: target of the configuration -> the module's path in a layer
_PATHS = {
    "qkv": "self_attention.linear_qkv",
    "proj": "self_attention.linear_proj",
    "fc1": "mlp.linear_fc1",
    "fc2": "mlp.linear_fc2",
}


def is_lora(name: str) -> bool:
    """Whether a parameter's name is that of a low-rank matrix."""
    return name.endswith((".lora_a", ".lora_b"))


class _Lora:
    """What both kinds of layer share."""

    lora_a: torch.nn.Parameter
    lora_b: torch.nn.Parameter
    lora_scale: float
    lora_gated: bool


class LoraColumnParallelLinear(ColumnParallelLinear, _Lora):
    """lora_a `[rank, in]` is whole on every rank, lora_b `[out / tp, rank]` split."""

    def forward(self, input_: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        output, bias = super().forward(input_, *args, **kwargs)
        low = F.linear(input_, self.lora_a)
        if self.sequence_parallel:
            low = gather_from_sequence_parallel_region(low, group=self.tp_group)
        else:
            # ranks hold different rows of B, and the gradient of what goes into all of them is their sum
            low = copy_to_tensor_model_parallel_region(low, group=self.tp_group)
        return output + self.lora_scale * F.linear(low, self.lora_b), bias

    def sharded_state_dict(
        self,
        prefix: str = "",
        sharded_offsets: tuple[tuple[int, int, int], ...] = (),
        metadata: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        state = make_sharded_tensors_for_checkpoint(
            self.state_dict(prefix="", keep_vars=True),
            prefix,
            {"weight": 0, "bias": 0, "lora_b": 0},
            sharded_offsets,
            tp_group=self.tp_group,
            dp_cp_group=(metadata or {})["dp_cp_group"],
        )
        if self.lora_gated:  # a rank holds its part of the gate and of the up matrix, as it does of W
            name = f"{prefix}lora_b"
            state[name] = apply_swiglu_sharded_factory(state[name], sharded_offsets)
        return state


class LoraRowParallelLinear(RowParallelLinear, _Lora):
    """lora_a `[rank, in / tp]` is split, lora_b `[out, rank]` whole on every rank."""

    def forward(self, input_: Tensor) -> tuple[Tensor, Tensor | None]:
        output, bias = super().forward(input_)
        low = F.linear(input_, self.lora_a)
        if self.sequence_parallel:
            low = reduce_scatter_to_sequence_parallel_region(low, group=self.tp_group)
        else:
            low = reduce_from_tensor_model_parallel_region(low, group=self.tp_group)
        return output + self.lora_scale * F.linear(low, self.lora_b), bias

    def sharded_state_dict(
        self,
        prefix: str = "",
        sharded_offsets: tuple[tuple[int, int, int], ...] = (),
        metadata: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        state: dict[str, Any] = make_sharded_tensors_for_checkpoint(
            self.state_dict(prefix="", keep_vars=True),
            prefix,
            {"weight": 1, "lora_a": 1},
            sharded_offsets,
            tp_group=self.tp_group,
            dp_cp_group=(metadata or {})["dp_cp_group"],
        )
        return state


def add_lora(decoder: TransformerBlock, lora: LoraConfig, gated: bool) -> None:
    """Give the targets in the layers of a decoder their low-rank matrices, without values yet.

    Args:
        decoder: megatron-core's TransformerBlock of this rank.
        gated: whether fc1 is a gate and an up matrix.

    Raises:
        TypeError: a target is not megatron-core's own tensor-parallel layer (Transformer Engine's have other forwards).
    """
    for layer in decoder.layers:
        for target in lora.targets:
            _extend(layer.get_submodule(_PATHS[target]), lora, gated and target == "fc1")


def _extend(linear: Any, lora: LoraConfig, gated: bool) -> None:
    weight = linear.weight
    out, into = weight.shape
    column = type(linear) is ColumnParallelLinear
    if not column and type(linear) is not RowParallelLinear:
        raise TypeError(f"LoRA needs megatron-core's own layers, and this is a {type(linear).__name__}")
    linear.__class__ = LoraColumnParallelLinear if column else LoraRowParallelLinear
    linear.lora_scale, linear.lora_gated = lora.alpha / lora.rank, gated
    linear.lora_a = torch.nn.Parameter(weight.new_zeros(lora.rank, into))
    linear.lora_b = torch.nn.Parameter(weight.new_zeros(out, lora.rank))
    split, whole = (linear.lora_b, linear.lora_a) if column else (linear.lora_a, linear.lora_b)
    set_tensor_model_parallel_attributes(split, True, 0 if column else 1, 1)
    # under sequence parallelism a rank's gradient of the whole one is that of its positions: megatron-core sums them
    whole.sequence_parallel = bool(linear.sequence_parallel)
