"""What reaches megatron-core's configurations of precision and performance, without a GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from megatron.core.enums import Fp8Recipe
from megatron.core.fp8_utils import is_first_last_bf16_layer
from megatron.core.transformer.enums import AttnBackend
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_vlm.config.loading import load_config
from megatron_vlm.config.performance import PerformanceConfig
from megatron_vlm.config.precision import PrecisionConfig
from megatron_vlm.config.run import RunConfig
from megatron_vlm.errors import UserError
from megatron_vlm.models.block_options import language_options, vision_options
from megatron_vlm.models.fp8 import fp8_options, require_fp8, without_fp8
from megatron_vlm.models.fused_kernels import FusedKernels, choose_kernels, kernel_options
from megatron_vlm.models.transformer_configs import language_config, vision_config

EVERYTHING = FusedKernels(gradient_accumulation=True, rope=True, cross_entropy="transformer_engine")
FP8 = ("--precision.fp8", "current", "--precision.first_layers_in_bf16", "1")
NOTHING = FusedKernels(gradient_accumulation=False, rope=False, cross_entropy="native")


def tiny(*overrides: str) -> RunConfig:
    return load_config(preset="tiny", overrides=list(overrides))


def language(config: RunConfig, options: dict[str, Any]) -> TransformerConfig:
    return language_config(config.model, config.parallel, "cuda", options)


@pytest.mark.parametrize(
    ("recipe", "theirs"),
    [
        ("delayed", Fp8Recipe.delayed),
        ("current", Fp8Recipe.tensorwise),
        ("blockwise", Fp8Recipe.blockwise),
        ("mxfp8", Fp8Recipe.mxfp8),
    ],
)
def test_recipes_are_megatron_cores(recipe: Any, theirs: Fp8Recipe) -> None:
    precision = PrecisionConfig(fp8=recipe, fp8_format="e4m3", fp8_history=16, fp8_amax="most_recent")
    core = language(tiny(), fp8_options(precision))
    assert core.fp8 == "e4m3"
    assert core.fp8_recipe == theirs
    assert (core.fp8_amax_history_len, core.fp8_amax_compute_algo) == (16, "most_recent")
    assert not core.first_last_layers_bf16
    assert not core.fp8_param


def test_the_layers_that_stay_in_bf16_are_those_that_were_asked_for() -> None:
    core = language(tiny(), fp8_options(PrecisionConfig(fp8="current", first_layers_in_bf16=1, last_layers_in_bf16=2)))
    assert [is_first_last_bf16_layer(core, layer) for layer in range(4)] == [True, False, True, True]
    core = language(tiny(), fp8_options(PrecisionConfig(fp8="current", last_layers_in_bf16=1)))
    assert [is_first_last_bf16_layer(core, layer) for layer in range(4)] == [False, False, False, True]


def test_the_encoder_stays_in_bf16_beside_a_language_model_in_fp8() -> None:
    config = tiny(*FP8)
    options = {**fp8_options(config.precision), **kernel_options(NOTHING, config.performance)}
    assert language(config, options).fp8 == "hybrid"
    encoder = vision_config(config.model, config.parallel, "cuda", options=vision_options(config, options))
    assert encoder.fp8 is None
    assert encoder.bf16
    with_it = tiny(*FP8, "--precision.fp8_vision", "true")
    encoder = vision_config(with_it.model, with_it.parallel, "cuda", options=vision_options(with_it, options))
    assert (encoder.fp8, encoder.fp8_recipe) == ("hybrid", Fp8Recipe.tensorwise)
    assert not encoder.first_last_layers_bf16  # the language model's layers


def test_bf16_is_what_nothing_asked_for_gives() -> None:
    config = tiny()
    core = language(config, {**fp8_options(config.precision), **kernel_options(NOTHING, config.performance)})
    assert core.fp8 is None
    assert core.bf16
    assert not core.gradient_accumulation_fusion


def test_kernels_are_taken_on_a_gpu_where_they_are_found() -> None:
    auto = PerformanceConfig()
    assert choose_kernels(auto, "transformer_engine", "cuda", EVERYTHING) == FusedKernels(True, True, "native")
    assert choose_kernels(auto, "transformer_engine", "cuda", NOTHING) == FusedKernels(False, False, "native")
    # rotary positions are Transformer Engine's, the sums of weight gradients apex's
    assert choose_kernels(auto, "host", "cuda", EVERYTHING) == FusedKernels(True, False, "native")
    assert choose_kernels(auto, "host", "cpu", EVERYTHING) == FusedKernels(False, False, "none")
    # megatron-core's cross-entropy rounds gradients to bf16
    assert choose_kernels(auto, "host", "cuda", NOTHING, bf16=False).cross_entropy == "none"
    off = PerformanceConfig(gradient_accumulation_fusion=False, rope_fusion=False, cross_entropy_fusion="none")
    assert choose_kernels(off, "transformer_engine", "cuda", EVERYTHING) == FusedKernels(False, False, "none")
    asked = PerformanceConfig(gradient_accumulation_fusion=True, rope_fusion=True, cross_entropy_fusion="transformer_engine")
    assert choose_kernels(asked, "transformer_engine", "cuda", EVERYTHING) == EVERYTHING


ASKED = {
    "rope_fusion": {"rope_fusion": True},
    "gradient_accumulation_fusion": {"gradient_accumulation_fusion": True},
    "cross_entropy_fusion": {"cross_entropy_fusion": "transformer_engine"},
    "attention_backend": {"attention_backend": "flash"},
    "cpu_offload_layers": {"cpu_offload_layers": 1},
    "tp_overlap": {"tp_overlap": True},
    "cuda_graphs": {"cuda_graphs": "mlp"},
}


@pytest.mark.parametrize("field", ASKED)
def test_what_is_asked_for_and_cannot_be_on_cpu_ranks_is_refused(field: str) -> None:
    with pytest.raises(UserError, match=rf"performance\.{field}: .*CPU ranks; set it to"):
        choose_kernels(PerformanceConfig(**ASKED[field]), "host", "cpu", EVERYTHING)  # type: ignore[arg-type]


@pytest.mark.parametrize("field", ["rope_fusion", "gradient_accumulation_fusion", "cross_entropy_fusion"])
def test_what_is_asked_for_and_missing_is_refused(field: str) -> None:
    with pytest.raises(UserError, match=rf"performance\.{field}: .*set it to"):
        choose_kernels(PerformanceConfig(**ASKED[field]), "transformer_engine", "cuda", NOTHING)  # type: ignore[arg-type]


def test_graphs_beside_segments_that_move_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = PerformanceConfig(cuda_graphs="mlp")
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    with pytest.raises(UserError, match=r"performance\.cuda_graphs: .*set NCCL_GRAPH_REGISTER=0"):
        choose_kernels(graphs, "transformer_engine", "cuda", EVERYTHING)
    monkeypatch.setenv("NCCL_GRAPH_REGISTER", "0")
    kernels = choose_kernels(graphs, "transformer_engine", "cuda", EVERYTHING)
    options = {**kernel_options(kernels, graphs), "apply_rope_fusion": False}
    core = language(tiny(), options)
    captured = getattr(core, "cuda_graph_modules", None) or core.cuda_graph_scope
    assert (core.cuda_graph_impl, [part.name for part in captured]) == ("transformer_engine", ["mlp"])


def test_options_have_megatron_cores_names() -> None:
    performance = PerformanceConfig(
        cpu_offload_layers=2, cross_entropy_fusion="transformer_engine", attention_backend="flash"
    )
    kernels = choose_kernels(performance, "transformer_engine", "cuda", EVERYTHING)
    options = {**kernel_options(kernels, performance), "apply_rope_fusion": False}  # which looks for the kernel at once
    core = language(tiny(), options)
    assert core.cpu_offloading
    assert core.cpu_offloading_num_layers == 2
    assert not core.cpu_offloading_weights
    assert (core.cross_entropy_loss_fusion, core.cross_entropy_fusion_impl) == (True, "te")
    assert core.attention_backend is AttnBackend.flash
    assert core.gradient_accumulation_fusion


def test_recomputation_reaches_language_and_encoder() -> None:
    config = tiny(
        *("--parallel.recompute", "full", "--performance.recompute_method", "block"),
        *("--performance.recompute_layers", "3", "--performance.recompute_vision", "true"),
    )
    options = language_options(config, "host", "cpu")
    core = language_config(config.model, config.parallel, "cpu", options)
    assert (core.recompute_granularity, core.recompute_method, core.recompute_num_layers) == ("full", "block", 3)
    encoder = vision_config(config.model, config.parallel, "cpu", options=vision_options(config, options))
    assert (encoder.recompute_granularity, encoder.recompute_method, encoder.recompute_num_layers) == ("full", "uniform", 1)


def test_fp8_on_cpu_ranks_is_refused() -> None:
    with pytest.raises(UserError, match="needs a GPU, and there is none; set it to none"):
        language_options(tiny("--precision.fp8", "current"), "host", "cpu")


def test_fp8_without_transformer_engines_layers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    with pytest.raises(UserError, match="needs Transformer Engine"):
        require_fp8(PrecisionConfig(fp8="current"), "host", "cuda")
    require_fp8(PrecisionConfig(fp8="current"), "transformer_engine", "cuda")
    with pytest.raises(UserError, match=r"needs compute capability 10.0, and this GPU has 9.0; .*blockwise"):
        require_fp8(PrecisionConfig(fp8="mxfp8"), "transformer_engine", "cuda")


def test_what_is_scored_is_in_bf16_and_training_goes_on_in_fp8() -> None:
    core = language(tiny(), fp8_options(PrecisionConfig(fp8="current")))
    block = torch.nn.Linear(1, 1)
    block.config = core  # type: ignore[assignment]
    chunk = torch.nn.Sequential(block)
    with without_fp8([chunk]):
        assert core.fp8 is None
    assert core.fp8 == "hybrid"
    with pytest.raises(RuntimeError, match="in the middle"), without_fp8([chunk]):
        raise RuntimeError("in the middle")
    assert core.fp8 == "hybrid"
