"""Our configuration into megatron-core's TransformerConfig, for the language blocks, the encoder and the projector."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_vlm.config.model import ModelConfig, VisionConfig
from megatron_vlm.config.parallel import ParallelConfig


def gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    return F.gelu(x, approximate="tanh")


def quick_gelu(x: torch.Tensor) -> torch.Tensor:
    """x * sigmoid(1.702 x), as CLIP has it."""
    return x * torch.sigmoid(1.702 * x)


_ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "swiglu": F.silu,
    "geglu": gelu_tanh,
    "gelu": F.gelu,
    "gelu_tanh": gelu_tanh,
    "quick_gelu": quick_gelu,
}


def parameter_dtype(parallel: ParallelConfig, device_type: str) -> torch.dtype:
    """fp32 on the host and bf16 on CUDA, unless `parallel.precision` says otherwise."""
    if parallel.precision == "auto":
        return torch.bfloat16 if device_type == "cuda" else torch.float32
    return torch.bfloat16 if parallel.precision == "bf16" else torch.float32


def _leave(weight: torch.Tensor) -> torch.Tensor:
    return weight


def _shared(parallel: ParallelConfig, device_type: str) -> dict[str, Any]:
    dtype = parameter_dtype(parallel, device_type)
    host = device_type == "cpu"
    return {
        "tensor_model_parallel_size": parallel.tensor_model_parallel_size,
        "bf16": dtype is torch.bfloat16,
        "params_dtype": dtype,
        "pipeline_dtype": dtype,
        # weights come from models.initialization, which gives every layout the same ones; megatron-core's own step runs
        # all the same, since it is there that it marks which parameters are tensor-parallel
        "perform_initialization": True,
        "init_method": _leave,
        "output_layer_init_method": _leave,
        "embedding_init_method": _leave,
        "use_cpu_initialization": host,
        "attention_dropout": 0.0,
        "gradient_accumulation_fusion": False,  # needs apex's kernel, see models.fused_kernels
        "masked_softmax_fusion": False,
        "bias_activation_fusion": False,
        "bias_dropout_fusion": False,
        "apply_rope_fusion": False,
    }


def _beside(parallel: ParallelConfig, device_type: str) -> dict[str, Any]:
    """Of encoder and projector: split as the language's layers are, or whole on each rank."""
    split = parallel.tensor_model_parallel_size if parallel.vision == "tensor" else 1
    return _shared(parallel, device_type) | {"tensor_model_parallel_size": split}


def language_config(
    model: ModelConfig, parallel: ParallelConfig, device_type: str, options: Mapping[str, Any] | None = None
) -> TransformerConfig:
    """`options`: what precision and performance say (`block_options.language_options`); None: bf16 or fp32."""
    language = model.language
    vp = parallel.virtual_pipeline_model_parallel_size
    fields: dict[str, Any] = _shared(parallel, device_type)
    fields |= {
        "num_layers": language.num_layers,
        "hidden_size": language.hidden_size,
        "num_attention_heads": language.num_attention_heads,
        "num_query_groups": language.query_groups,
        "ffn_hidden_size": language.ffn_width,
        "normalization": "RMSNorm" if language.normalization == "rmsnorm" else "LayerNorm",
        "layernorm_epsilon": language.norm_epsilon,
        "gated_linear_unit": language.gated,
        "activation_func": _ACTIVATIONS[language.activation],
        "kv_channels": language.kv_channels,
        "layernorm_zero_centered_gamma": language.zero_centered_gamma,
        "add_bias_linear": language.add_bias_linear,
        "add_qkv_bias": language.add_qkv_bias,
        "qk_layernorm": language.qk_layernorm,
        # the host sends without a stream to order it: freed too early, the next stage reads other numbers
        "deallocate_pipeline_outputs": device_type == "cuda",
        "hidden_dropout": language.dropout,
        "attention_dropout": language.dropout,
        "sequence_parallel": parallel.sequence_parallel,
        "pipeline_model_parallel_size": parallel.pipeline_model_parallel_size,
        "virtual_pipeline_model_parallel_size": vp if vp > 1 else None,
        "num_layers_in_first_pipeline_stage": parallel.num_layers_in_first_pipeline_stage,
        "num_layers_in_last_pipeline_stage": parallel.num_layers_in_last_pipeline_stage,
        # the sum of token losses over the global batch is divided by its number of trained tokens
        "calculate_per_token_loss": True,
    }
    if vp > 1:  # batched p2p under the interleaved schedule gives wrong losses on gloo
        fields |= {"overlap_p2p_comm": True, "batch_p2p_comm": False}
    return TransformerConfig(**{**fields, **(options or {})})


def vision_config(
    model: ModelConfig,
    parallel: ParallelConfig,
    device_type: str,
    encoder: VisionConfig | None = None,
    options: Mapping[str, Any] | None = None,
) -> TransformerConfig:
    """The encoder is whole on the first pipeline stage, so its configuration has no pipeline of its own. `encoder` None: the
    model's first. `options`: what precision and performance say (`block_options.vision_options`)."""
    vision = encoder or model.vision
    return TransformerConfig(
        **{**_beside(parallel, device_type), **(options or {})},
        num_layers=vision.num_layers - vision.skip_last_layers,
        hidden_size=vision.hidden_size,
        num_attention_heads=vision.num_attention_heads,
        ffn_hidden_size=vision.ffn_width,
        normalization="LayerNorm",
        layernorm_epsilon=vision.norm_epsilon,
        activation_func=_ACTIVATIONS[vision.activation],
        gated_linear_unit=vision.gated,
        add_bias_linear=True,
        add_qkv_bias=True,
        hidden_dropout=0.0,
    )


def projector_config(
    model: ModelConfig, parallel: ParallelConfig, device_type: str, gradient_accumulation_fusion: bool = False
) -> TransformerConfig:
    """A stand-in transformer configuration: megatron-core's parallel layers read sizes and dtypes from one."""
    width = model.projector.hidden_size or model.language.hidden_size
    return TransformerConfig(
        **{**_beside(parallel, device_type), "gradient_accumulation_fusion": gradient_accumulation_fusion},
        num_layers=1,
        hidden_size=model.language.hidden_size,
        num_attention_heads=model.language.num_attention_heads,
        ffn_hidden_size=width,
        activation_func=F.gelu,
        add_bias_linear=True,
        hidden_dropout=0.0,
    )
