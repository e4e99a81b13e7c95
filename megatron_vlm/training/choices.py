"""What a run chose of what was found: read off what megatron-core was built with, so that the log cannot say otherwise."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_vlm.config.run import RunConfig
from megatron_vlm.models.specs import choose_layer_spec
from megatron_vlm.training.engine import Engine, unwrap
from megatron_vlm.training.surroundings import Finding

#: megatron-core's name of a recipe -> ours
_RECIPES = {"tensorwise": "current"}


def run_choices(engine: Engine) -> list[Finding]:
    """Lines of the table at a run's start, after those of `surroundings.survey`. The engine stands at a stage."""
    config, device = engine.config, engine.topology.device.type
    model = unwrap(engine.chunks[0])
    core = model.config
    return [
        _layers(config, core, device),
        Finding("precision", f"parallel.precision {config.parallel.precision}", _precision(core)),
        *([] if model.vision is None else [Finding("encoder", "", _precision(model.vision.config))]),
        Finding("fused kernels", "", ", ".join(_fused(core)) or "none"),
        Finding(
            "recomputed", f"parallel.recompute {config.parallel.recompute}", ", ".join(_recomputed(config, core)) or "none"
        ),
        Finding("overlapped", "", ", ".join(_overlapped(config, core)) or "nothing"),
        Finding("captured", "", ", ".join(_captured(core)) or "nothing"),
        Finding("Adam", "", _adam(engine)),
    ]


def _layers(config: RunConfig, core: TransformerConfig, device: str) -> Finding:
    spec = choose_layer_spec(config, device)
    attention = f"attention {core.attention_backend.name}" if spec == "transformer_engine" else "PyTorch's attention"
    return Finding("layers", f"parallel.layer_spec {config.parallel.layer_spec}", f"{spec}, {attention}")


def _precision(core: TransformerConfig) -> str:
    plain = "bf16" if core.params_dtype is torch.bfloat16 else "fp32"
    if core.fp8 is None:
        return plain
    recipe = getattr(core.fp8_recipe, "value", core.fp8_recipe)
    words = (
        f"matrix products in FP8 {core.fp8}, {_RECIPES.get(recipe, recipe)} scaling; the rest and what is scored in {plain}"
    )
    if not core.first_last_layers_bf16:
        return words
    return f"{words}; first {core.num_layers_at_start_in_bf16} and last {core.num_layers_at_end_in_bf16} layers in {plain}"


def _fused(core: TransformerConfig) -> Iterator[str]:
    if core.gradient_accumulation_fusion:
        yield "sums of weight gradients (apex)"
    if core.apply_rope_fusion:
        yield "rotary positions (Transformer Engine)"
    if core.cross_entropy_loss_fusion:
        yield f"cross-entropy ({'Transformer Engine' if core.cross_entropy_fusion_impl == 'te' else 'megatron-core'})"


def _captured(core: TransformerConfig) -> Iterator[str]:
    if core.cuda_graph_impl != "none":
        yield "feed-forward blocks of language layers (CUDA graphs)"


def _recomputed(config: RunConfig, core: TransformerConfig) -> Iterator[str]:
    if core.recompute_granularity == "selective":
        yield " and ".join(core.recompute_modules or ())
    elif core.recompute_granularity == "full":
        yield f"language layers, {core.recompute_method} by {core.recompute_num_layers}"
    if config.performance.recompute_vision:
        yield "encoder layers"


def _overlapped(config: RunConfig, core: TransformerConfig) -> Iterator[str]:
    if config.parallel.overlap_grad_reduce:
        yield "reduction of gradients"
    if config.parallel.overlap_param_gather:
        yield "gather of parameters"
    if core.tp_comm_overlap:
        yield "tensor-parallel communication"
    if core.cpu_offloading:
        yield f"activations of {core.cpu_offloading_num_layers} layers to the host's memory"


def _adam(engine: Engine) -> str:
    inner = getattr(engine.optimizer.inner, "optimizer", None)
    if inner is None:
        return "none: nothing on this rank is trained"
    kind = type(inner)
    shared = ", its state over data-parallel ranks" if engine.config.parallel.use_distributed_optimizer else ""
    return f"{kind.__module__.partition('.')[0]} {kind.__name__}{shared}"
