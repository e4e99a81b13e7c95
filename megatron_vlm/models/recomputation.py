"""Which activations are computed again in the backward pass, in megatron-core's words."""

from __future__ import annotations

from typing import Any

from megatron_vlm.config.parallel import ParallelConfig
from megatron_vlm.config.performance import PerformanceConfig


def recompute_options(parallel: ParallelConfig, performance: PerformanceConfig) -> dict[str, Any]:
    """Fields of megatron-core's TransformerConfig for the language blocks."""
    if parallel.recompute == "none":
        return {}
    if parallel.recompute == "selective":
        return {"recompute_granularity": "selective", "recompute_modules": list(performance.recompute_modules)}
    return {
        "recompute_granularity": "full",
        "recompute_method": performance.recompute_method,
        "recompute_num_layers": performance.recompute_layers,
    }


def vision_recompute_options(performance: PerformanceConfig) -> dict[str, Any]:
    """The same for an encoder: whole layers, each from its input."""
    if not performance.recompute_vision:
        return {}
    return {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
