"""What Transformer Engine makes of our FP8 options and fused kernels, in one process without a GPU.

  python -m tests.models.engine_precision

Needs Transformer Engine. Prints one JSON object (`main` says of what). Nothing computes: contexts are opened, models built.
"""

from __future__ import annotations

import inspect
import json
from dataclasses import asdict, replace
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.fp8_utils import get_fp8_context
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
from megatron.core.transformer.cuda_graphs import TECudaGraphHelper

from megatron_vlm.config.loading import load_config
from megatron_vlm.config.precision import LEAST_CAPABILITY, PrecisionConfig, chip_problem
from megatron_vlm.models.fp8 import without_fp8
from megatron_vlm.models.fused_kernels import found_kernels
from megatron_vlm.training.user_buffers import buffer_arguments
from tests.models import without_device

CAPABILITIES = ((8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (10, 3), (12, 0))


def support() -> list[dict[str, Any]]:
    """Whether a chip has a recipe, by our table and by Transformer Engine's own functions."""
    from transformer_engine.pytorch import quantization

    theirs = {
        "delayed": quantization._compute_fp8_support,
        "current": quantization._compute_fp8_support,
        "blockwise": quantization._compute_fp8_block_scaling_support,
        "mxfp8": quantization._compute_mxfp8_support,
    }
    found = []
    for capability in CAPABILITIES:
        pretend_chip(capability)
        for recipe in LEAST_CAPABILITY:
            ours = chip_problem(recipe, capability) is None
            found.append({"recipe": recipe, "capability": capability, "ours": ours, "theirs": theirs[recipe]()[0]})
    return found


def pretend_chip(capability: tuple[int, int]) -> None:
    """Another one than at first: Transformer Engine remembers what it found."""
    from transformer_engine.pytorch import quantization

    without_device.pretend_device("cpu", capability)
    quantization.get_device_compute_capability = lambda: capability
    quantization._FP8_SUPPORT = quantization._MXFP8_SUPPORT = quantization._FP8_BLOCK_SCALING_SUPPORT = None


def _inside(core: Any, layer: int) -> str:
    """The recipe that is on inside a layer's context; none: bf16."""
    from transformer_engine.pytorch.quantization import FP8GlobalStateManager as State

    with get_fp8_context(core, layer):
        return type(State.get_fp8_recipe()).__name__ if State.is_fp8_enabled() else "none"


def contexts() -> dict[str, Any]:
    """Recipe -> what is on in each language layer, in the encoder's first, and in a language layer while documents are
    scored; on Hopper, MXFP8 on Blackwell."""
    found = {}
    base = load_config(preset="tiny")
    for recipe in LEAST_CAPABILITY:
        edges = 0 if recipe == "delayed" else 1
        precision = PrecisionConfig(fp8=recipe, first_layers_in_bf16=edges)
        if recipe == "mxfp8":
            pretend_chip((10, 0))
        config = replace(base, precision=precision, parallel=replace(base.parallel, layer_spec="transformer_engine"))
        (model,) = without_device.build(config, "cpu")
        assert model.vision is not None
        found[recipe] = {
            "language": [_inside(model.config, layer) for layer in range(4)],
            "encoder": _inside(model.vision.config, 0),
            "extra state in checkpoints": [n for n in model.sharded_state_dict() if "_extra_state" in n],
        }
        with without_fp8([model]):
            found[recipe]["scoring"] = _inside(model.config, 3)
    return found


def refused() -> str:
    """What building a model says on Hopper to MXFP8."""
    pretend_chip((9, 0))
    config = load_config(preset="tiny", overrides=["--precision.fp8", "mxfp8"])
    try:
        without_device.build(config, "cpu")
    except Exception as error:
        return str(error)
    return ""


def buffers() -> dict[str, Any]:
    """`initialize_ub`'s arguments bound to its signature."""
    from transformer_engine.pytorch.module.base import UserBufferQuantizationMode, initialize_ub

    config = load_config(preset="tiny", overrides=["--precision.fp8", "current", "--precision.last_layers_in_bf16", "1"])
    bound = inspect.signature(initialize_ub).bind(**buffer_arguments(config, UserBufferQuantizationMode))
    return {name: str(value) for name, value in bound.arguments.items()}


def built(*overrides: str) -> dict[str, Any]:
    """Options of the language blocks of a model that was built with them."""
    config = load_config(preset="tiny", overrides=["--parallel.layer_spec", "transformer_engine", *overrides])
    without_device.enter(0, config.parallel.tensor_model_parallel_size, config.parallel)
    (model,) = without_device.build(config, "cpu")
    core, layer = model.config, model.language_model.decoder.layers[0]
    return {
        "cpu_offloading": core.cpu_offloading,
        "captured": [core.cuda_graph_impl, *(scope.name for scope in core.cuda_graph_scope)],
        "layers to capture": len(TECudaGraphHelper([model], core, 256, 1).flattened_callables)
        if core.cuda_graph_impl != "none"
        else 0,
        "offload context": type(model.language_model.decoder.offload_context).__name__,
        "apply_rope_fusion": core.apply_rope_fusion,
        "cross_entropy": core.cross_entropy_fusion_impl,
        "overlapped gathers and reductions": [
            name
            for name, module in layer.named_modules()
            if getattr(module, "ub_overlap_ag_fprop", False) or getattr(module, "ub_overlap_rs_fprop", False)
        ],
    }


def shared_rows() -> dict[str, Any]:
    """Of a model whose rows are shared by ranks: its attention, its parameters beside those of one whose are not, and what
    Transformer Engine is called with for two pieces, bound to its signature."""
    import transformer_engine.pytorch as te

    from megatron_vlm.models.context_row import attended, cut_row

    names, attention = [], None
    for size in (1, 2):
        words = ["--parallel.layer_spec", "transformer_engine", "--parallel.context_parallel_size", str(size)]
        config = load_config(preset="tiny", overrides=words)
        without_device.enter(0, size, config.parallel)
        (model,) = without_device.build(config, "cpu")
        names.append(sorted(dict(model.named_parameters())))
        attention = model.language_model.decoder.layers[0].self_attention.core_attention
    signature, called = inspect.signature(te.DotProductAttention.forward), {}
    te.DotProductAttention.forward = lambda *a, **k: called.update(signature.bind(*a, **k).arguments)
    row = torch.zeros(8, 4, 32)
    attention.attend(row, row, row, attended(cut_row([3, 9], 3)[1:], row.device))
    return {
        "attention": type(attention).__name__,
        "ranks that Transformer Engine would share with": attention.cp_group is not None,
        "same parameters": names[0] == names[1],
        "kinds of attention": sorted({m.attention_type for m in attention.modules() if hasattr(m, "attention_type")}),
        "mask": called["attn_mask_type"],
        "cu_seqlens": [called["cu_seqlens_q"].tolist(), called["cu_seqlens_kv"].tolist()],
    }


def pretend_user_buffers() -> None:
    """Layers ask whether the buffers were made, which takes several GPUs; they look into them as late as in a forward."""
    from transformer_engine.pytorch.module import layernorm_linear, linear

    for module in (linear, layernorm_linear):
        module.is_ub_initialized = lambda: True


def main() -> None:
    without_device.pretend_device("cpu", (9, 0))
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    parallel_state.initialize_model_parallel(create_gloo_process_groups=False)
    model_parallel_cuda_manual_seed(1)
    graphs = ["--performance.cuda_graphs", "mlp"]
    fused = ["--performance.cpu_offload_layers", "2", "--performance.cross_entropy_fusion", "transformer_engine"]
    pretend_user_buffers()
    overlap = ["--performance.tp_overlap", "true", "--parallel.sequence_parallel", "true"]
    overlap += ["--parallel.tensor_model_parallel_size", "2"]
    result = {
        "contexts": contexts(),
        "refused": refused(),
        "kernels": asdict(found_kernels()),
        "buffers": buffers(),
        "fused": built(*fused),
        "captured": built(*graphs),
        "overlapped": built(*overlap),
        "support": support(),
        "shared rows": shared_rows(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
