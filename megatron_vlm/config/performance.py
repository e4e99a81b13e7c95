"""What a step's speed and memory are bought with, and changes no result but by rounding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class PerformanceConfig:
    """Recomputation beyond `parallel.recompute`, offloading, overlap and fused kernels. auto and null: where what they need
    is found, on a GPU; `megatron-vlm doctor` and the log say what was."""

    #: what `parallel.recompute: selective` computes again in the backward pass, of every language layer
    recompute_modules: tuple[Literal["core_attn", "layernorm", "mlp"], ...] = ("core_attn",)
    #: `parallel.recompute: full`: uniform keeps the input of every `recompute_layers` layers; block computes the first
    #: `recompute_layers` layers of a pipeline chunk again, and keeps all of the others
    recompute_method: Literal["uniform", "block"] = "uniform"
    recompute_layers: int = 1
    #: compute the vision encoder's layers again in the backward pass, where it is trained
    recompute_vision: bool = False
    #: language layers whose activations wait in the host's memory for the backward pass
    cpu_offload_layers: int = 0
    #: tensor-parallel communication overlaps the matrix products that need it, through user buffers
    tp_overlap: bool = False
    #: weight gradients are added to the fp32 sums by the matrix product; needs apex's extension
    gradient_accumulation_fusion: bool | None = None
    #: rotary positions by Transformer Engine's kernel
    rope_fusion: bool | None = None
    #: native: megatron-core's, whose collectives are fewer and which rounds the logits' gradients to bf16;
    #: transformer_engine: its Triton kernel; auto: native in bf16, none in fp32
    cross_entropy_fusion: Literal["auto", "none", "native", "transformer_engine"] = "auto"
    #: mlp: the feed-forward block of each language layer is captured once and launched whole; its attention, which takes
    #: other documents in each micro-batch, is not
    cuda_graphs: Literal["none", "mlp"] = "none"
    #: auto: Transformer Engine chooses by the shapes; flash: flash-attn; fused: cuDNN's
    attention_backend: Literal["auto", "flash", "fused"] = "auto"
