"""FP8 in megatron-core's words, and whether this machine has it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_vlm.config.precision import PrecisionConfig, Recipe, chip_problem
from megatron_vlm.errors import UserError

#: ours -> megatron-core's `fp8_recipe`
_RECIPES: dict[Recipe, str] = {
    "delayed": "delayed",
    "current": "tensorwise",
    "blockwise": "blockwise",
    "mxfp8": "mxfp8",
}


def fp8_options(precision: PrecisionConfig) -> dict[str, Any]:
    """Fields of megatron-core's TransformerConfig for blocks whose matrix products are in FP8; empty for bf16."""
    if precision.fp8 == "none":
        return {}
    first, last = precision.first_layers_in_bf16, precision.last_layers_in_bf16
    return {
        "fp8": precision.fp8_format,
        "fp8_recipe": _RECIPES[precision.fp8],
        "fp8_amax_history_len": precision.fp8_history,
        "fp8_amax_compute_algo": precision.fp8_amax,
        "first_last_layers_bf16": first > 0 or last > 0,
        "num_layers_at_start_in_bf16": first,
        "num_layers_at_end_in_bf16": last,
    }


def vision_fp8_options(precision: PrecisionConfig) -> dict[str, Any]:
    """The same for the encoder, which stays in bf16 unless `precision.fp8_vision`; layers in bf16 are the language's."""
    if not precision.fp8_vision:
        return {}
    options = fp8_options(precision)
    return {name: value for name, value in options.items() if "bf16" not in name}


def require_fp8(precision: PrecisionConfig, layer_spec: str, device_type: str) -> None:
    """Raises UserError, with the nearest recipe that runs, where this machine cannot run the one that is asked for.

    Args:
        layer_spec: resolved, host or transformer_engine.
    """
    if precision.fp8 == "none":
        return
    problem = chip_problem(precision.fp8, torch.cuda.get_device_capability() if device_type == "cuda" else None)
    if problem is None and layer_spec != "transformer_engine":
        problem = (
            f"precision.fp8: {precision.fp8} needs Transformer Engine, and parallel.layer_spec host has PyTorch's layers; "
            f"set it to none, or install transformer_engine"
        )
    if problem is not None:
        raise UserError(problem)


@contextmanager
def without_fp8(chunks: Sequence[torch.nn.Module]) -> Iterator[None]:
    """Inside, megatron-core's blocks in these modules, which ask their configuration at each forward pass, stay in bf16."""
    configs: dict[int, tuple[TransformerConfig, Any]] = {}
    for chunk in chunks:
        for module in chunk.modules():
            config = getattr(module, "config", None)
            if isinstance(config, TransformerConfig):
                configs.setdefault(id(config), (config, config.fp8))
    for config, _ in configs.values():
        config.fp8 = None
    try:
        yield
    finally:
        for config, fp8 in configs.values():
            config.fp8 = fp8
