"""Fused kernels that megatron-core can use here, and which of them a run takes."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal

from megatron.core.transformer.enums import AttnBackend

from megatron_vlm.config.performance import PerformanceConfig
from megatron_vlm.errors import UserError
from megatron_vlm.parallel.core_release import graph_options


@dataclass(frozen=True)
class FusedKernels:
    """Of one place, found or taken; see `PerformanceConfig` for what each does.

    Attributes:
        gradient_accumulation: apex's extension `fused_weight_gradient_mlp_cuda`.
        rope: Transformer Engine's kernel for packed rows.
        cross_entropy: found: transformer_engine where it is there, else native, which is megatron-core's own.
    """

    gradient_accumulation: bool
    rope: bool
    cross_entropy: Literal["none", "native", "transformer_engine"]


def _has(module: str, name: str) -> bool:
    try:
        return getattr(import_module(module), name, None) is not None
    except ImportError:
        return False


def found_kernels() -> FusedKernels:
    """What is installed, whether or not there is a GPU to run it; imports megatron-core's modules that look for it."""
    cross_entropy = _has("megatron.core.extensions.transformer_engine", "te_parallel_cross_entropy")
    return FusedKernels(
        gradient_accumulation=bool(find_spec("fused_weight_gradient_mlp_cuda")),
        rope=_has("megatron.core.models.common.embeddings.rope_utils", "fused_apply_rotary_pos_emb_thd"),
        cross_entropy="transformer_engine" if cross_entropy else "native",
    )


def choose_kernels(
    performance: PerformanceConfig,
    layer_spec: str,
    device_type: str,
    found: FusedKernels | None = None,
    bf16: bool = True,
) -> FusedKernels:
    """What a run takes: what was asked for, and of what is auto or null all that is found, on a GPU.

    Args:
        layer_spec: resolved, host or transformer_engine.
        found: None: looked for.
        bf16: whether parameters are.

    Raises:
        UserError: asked for, and missing here or not the device's; also an attention backend, offloading or overlap without
            Transformer Engine's layers.
    """
    found = found_kernels() if found is None else found
    on_gpu, engine = device_type == "cuda", layer_spec == "transformer_engine"
    place = "this run is on CPU ranks" if not on_gpu else "parallel.layer_spec is host"
    for field, asked, nearest in (
        ("attention_backend", performance.attention_backend != "auto", "auto"),
        ("cpu_offload_layers", performance.cpu_offload_layers > 0, "0"),
        ("tp_overlap", performance.tp_overlap, "false"),
        ("cuda_graphs", performance.cuda_graphs != "none", "none"),
        ("rope_fusion", performance.rope_fusion is True, "null"),
        ("cross_entropy_fusion", performance.cross_entropy_fusion == "transformer_engine", "native"),
    ):
        if asked and not (on_gpu and engine):
            raise UserError(f"performance.{field}: is Transformer Engine's, and {place}; set it to {nearest}")
    if performance.gradient_accumulation_fusion and not on_gpu:
        raise UserError(f"performance.gradient_accumulation_fusion: needs a GPU, and {place}; set it to null")
    if performance.gradient_accumulation_fusion and not found.gradient_accumulation:
        raise UserError(
            "performance.gradient_accumulation_fusion: apex's extension fused_weight_gradient_mlp_cuda does not import "
            "here; set it to null, or install NVIDIA's apex with --cuda_ext (apex on PyPI is another project)"
        )
    if performance.rope_fusion and not found.rope:
        raise UserError("performance.rope_fusion: this Transformer Engine has no kernel for packed rows; set it to null")
    if performance.cross_entropy_fusion == "transformer_engine" != found.cross_entropy:
        raise UserError("performance.cross_entropy_fusion: this Transformer Engine has none; set it to native")
    segments = "expandable_segments:True" in os.environ.get("PYTORCH_CUDA_ALLOC_CONF", "")
    if performance.cuda_graphs != "none" and segments and os.environ.get("NCCL_GRAPH_REGISTER") != "0":
        raise UserError(
            "performance.cuda_graphs: NCCL would register graphs' memory that expandable segments move "
            "(PYTORCH_CUDA_ALLOC_CONF); set NCCL_GRAPH_REGISTER=0, or cuda_graphs to none"
        )
    fusion, rope, entropy = (
        performance.gradient_accumulation_fusion,
        performance.rope_fusion,
        performance.cross_entropy_fusion,
    )
    return FusedKernels(
        gradient_accumulation=on_gpu and found.gradient_accumulation if fusion is None else fusion,
        rope=on_gpu and engine and found.rope if rope is None else rope,
        cross_entropy=("native" if on_gpu and bf16 else "none") if entropy == "auto" else entropy,
    )


def kernel_options(kernels: FusedKernels, performance: PerformanceConfig) -> dict[str, Any]:
    """Fields of megatron-core's TransformerConfig for the language blocks."""
    return {
        "gradient_accumulation_fusion": kernels.gradient_accumulation,
        "apply_rope_fusion": kernels.rope,
        "cross_entropy_loss_fusion": kernels.cross_entropy != "none",
        "cross_entropy_fusion_impl": "te" if kernels.cross_entropy == "transformer_engine" else "native",
        "attention_backend": AttnBackend[performance.attention_backend],
        "tp_comm_overlap": performance.tp_overlap,
        "cpu_offloading": performance.cpu_offload_layers > 0,
        "cpu_offloading_num_layers": performance.cpu_offload_layers,
        **graph_options([] if performance.cuda_graphs == "none" else [performance.cuda_graphs]),
    }
