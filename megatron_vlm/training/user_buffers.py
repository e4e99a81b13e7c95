"""Transformer Engine's user buffers, through which tensor-parallel communication overlaps matrix products."""

from __future__ import annotations

from typing import Any

from megatron_vlm.config.run import RunConfig


def buffer_shape(config: RunConfig) -> list[int]:
    """`[positions of a micro-batch on a context-parallel rank, hidden size]`, which all stages have alike
    (`config.performance_checks`)."""
    stage, schedule = config.curriculum.stages[0], config.schedule
    positions = (stage.micro_batch_size or schedule.micro_batch_size) * (
        stage.sequence_length or config.data.sequence_length
    )
    return [positions // config.parallel.context_parallel_size, config.model.language.hidden_size]


def buffer_arguments(config: RunConfig, modes: Any) -> dict[str, Any]:
    """What `initialize_ub` is called with.

    Args:
        modes: Transformer Engine's `UserBufferQuantizationMode`; one set of buffers is made for FP8 layers and one for those
            in bf16, where there are both.
    """
    precision = config.precision
    wanted = [modes.NONE if precision.fp8 == "none" else modes.FP8]
    if precision.fp8 != "none" and precision.first_layers_in_bf16 + precision.last_layers_in_bf16 > 0:
        wanted.append(modes.NONE)
    return {
        "shape": buffer_shape(config),
        "tp_size": config.parallel.tensor_model_parallel_size,
        "quantization_modes": wanted,
        "bootstrap_backend": "nccl",
    }


def start_user_buffers(config: RunConfig) -> None:
    """Make the buffers, where `performance.tp_overlap` asks for them; every rank calls it once, before a model is built."""
    if not config.performance.tp_overlap:
        return
    from transformer_engine.pytorch.module import base

    base.initialize_ub(**buffer_arguments(config, base.UserBufferQuantizationMode))
