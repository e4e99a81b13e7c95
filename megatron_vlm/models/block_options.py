"""What `precision` and `performance` make of megatron-core's TransformerConfig, for the language blocks and the encoder."""

from __future__ import annotations

from typing import Any

import torch

from megatron_vlm.config.run import RunConfig
from megatron_vlm.models.fp8 import fp8_options, require_fp8, vision_fp8_options
from megatron_vlm.models.fused_kernels import choose_kernels, kernel_options
from megatron_vlm.models.recomputation import recompute_options, vision_recompute_options
from megatron_vlm.models.transformer_configs import parameter_dtype


def language_options(config: RunConfig, layer_spec: str, device_type: str) -> dict[str, Any]:
    """Fields of the language blocks' TransformerConfig.

    Args:
        layer_spec: resolved, host or transformer_engine.

    Raises:
        UserError: FP8 that the chip lacks, or a kernel that is asked for and not there.
    """
    require_fp8(config.precision, layer_spec, device_type)
    bf16 = parameter_dtype(config.parallel, device_type) is torch.bfloat16
    kernels = choose_kernels(config.performance, layer_spec, device_type, bf16=bf16)
    return {
        **recompute_options(config.parallel, config.performance),
        **fp8_options(config.precision),
        **kernel_options(kernels, config.performance),
    }


def vision_options(config: RunConfig, language: dict[str, Any]) -> dict[str, Any]:
    """Fields of an encoder's TransformerConfig; `language` are the language blocks' (`language_options`).

    In bf16 beside language blocks in FP8, unless `precision.fp8_vision`.
    """
    return {
        **vision_recompute_options(config.performance),
        **vision_fp8_options(config.precision),
        "gradient_accumulation_fusion": language["gradient_accumulation_fusion"],
    }
