"""Who is trained in which stage, and the correction that gives late-born parameters an optimiser of their own age."""

from __future__ import annotations

import pytest
import torch

from megatron_vlm.config.curriculum import CurriculumConfig, StageConfig
from megatron_vlm.config.model import LanguageConfig, ModelConfig
from megatron_vlm.config.run import RunConfig
from megatron_vlm.training.parameter_groups import (
    bias_correction_factor,
    frozen_in,
    global_name,
    group_label,
    held_at_zero,
    labelled,
    module_of,
    no_weight_decay,
    plain_name,
    training_pattern,
)

WEIGHT = "module.module.language_model.decoder.layers.0.mlp.linear_fc1.weight"


def run(*freeze: tuple[str, ...]) -> RunConfig:
    stages = tuple(StageConfig(name=str(i), freeze=modules) for i, modules in enumerate(freeze))
    return RunConfig(curriculum=CurriculumConfig(stages))


def test_names_inside_the_model() -> None:
    assert plain_name(WEIGHT) == WEIGHT.removeprefix("module.module.")
    assert plain_name("vision.module.weight") == "vision.module.weight"
    assert [module_of(name) for name in (WEIGHT, "module.vision.x", "projector.y")] == ["language", "vision", "projector"]


def test_freezing_by_module_and_by_prefix() -> None:
    assert frozen_in(WEIGHT, ["language"])
    assert not frozen_in(WEIGHT, ["vision", "projector"])
    assert frozen_in(WEIGHT, ["language_model.decoder.layers.0."])
    assert not frozen_in(WEIGHT.replace("layers.0", "layers.1"), ["language_model.decoder.layers.0."])
    assert not frozen_in("projector.vision.weight", ["vision"])


def test_labels_group_what_is_trained_together() -> None:
    config = run(("vision", "projector"), ("vision",), ())
    assert training_pattern("vision.x", config) == "001"
    assert group_label("module.projector.x", config) == "projector:011"
    assert group_label(WEIGHT, config) == "language:111"
    chosen = labelled(config, "language:111")
    parameter = torch.nn.Parameter(torch.zeros(1))
    assert chosen(parameter, WEIGHT)
    assert not chosen(parameter, "vision.x")


def test_a_layer_is_meant_by_its_number_in_the_whole_model() -> None:
    config = run(("language_model.decoder.layers.2.",), ())
    third, first = (torch.nn.Parameter(torch.zeros(1)) for _ in range(2))
    third.global_name = "language_model.decoder.layers.2.mlp.linear_fc1.weight"  # type: ignore[attr-defined]
    assert global_name(WEIGHT, third) == third.global_name  # type: ignore[attr-defined]
    assert global_name(WEIGHT, first) == plain_name(WEIGHT)
    assert labelled(config, "language:01")(third, WEIGHT)
    assert labelled(config, "language:11")(first, WEIGHT)


def test_norm_biases_are_held_only_under_gain_only_norms_of_the_language_model() -> None:
    gain_only = RunConfig(model=ModelConfig(language=LanguageConfig(normalization="layernorm_gain")))
    name = "module.language_model.decoder.layers.0.mlp.linear_fc1.layer_norm_bias"
    assert held_at_zero(name, gain_only)
    assert held_at_zero("language_model.decoder.final_layernorm.bias", gain_only)
    assert not held_at_zero(name, RunConfig())
    assert not held_at_zero("vision.decoder.final_layernorm.bias", gain_only)
    assert not held_at_zero("language_model.decoder.layers.0.self_attention.linear_qkv.bias", gain_only)


def test_vectors_have_no_weight_decay() -> None:
    matrix, vector = torch.nn.Parameter(torch.zeros(2, 2)), torch.nn.Parameter(torch.zeros(2))
    assert no_weight_decay(vector, "x.weight")
    assert no_weight_decay(matrix, "x.bias")
    assert not no_weight_decay(matrix, "x.weight")


def _adam_with_shared_count(
    parameter: torch.Tensor, gradients: list[torch.Tensor], rate: float, born: int, betas: tuple[float, float], eps: float
) -> list[torch.Tensor]:
    """Adam as a kernel with one step count for all groups runs it, for a parameter whose training began at step `born`."""
    beta1, beta2 = betas
    p, m, v = parameter.clone(), torch.zeros_like(parameter), torch.zeros_like(parameter)
    path = []
    for own, gradient in enumerate(gradients, start=1):
        shared = born + own
        m, v = beta1 * m + (1 - beta1) * gradient, beta2 * v + (1 - beta2) * gradient**2
        denominator = (v / (1 - beta2**shared)).sqrt() + eps
        scaled = rate * bias_correction_factor(shared, own, beta1, beta2)
        p = p - scaled * (m / (1 - beta1**shared)) / denominator
        path.append(p.clone())
    return path


@pytest.mark.parametrize("betas", [(0.9, 0.95), (0.9, 0.999), (0.0, 0.5)])
@pytest.mark.parametrize("born", [0, 1, 1000])
def test_a_late_born_parameter_steps_as_a_fresh_adamw(betas: tuple[float, float], born: int) -> None:
    """Exactly so where eps is negligible: eps stands outside what the factor can correct."""
    torch.manual_seed(0)
    start = torch.randn(7, dtype=torch.float64)
    gradients = [torch.randn(7, dtype=torch.float64) for _ in range(12)]
    fresh = torch.nn.Parameter(start.clone())
    adam = torch.optim.AdamW([fresh], lr=1e-2, betas=betas, eps=1e-30, weight_decay=0.0)
    ours = _adam_with_shared_count(start, gradients, 1e-2, born, betas, 1e-30)
    for gradient, expected in zip(gradients, ours, strict=True):
        fresh.grad = gradient
        adam.step()
        torch.testing.assert_close(fresh.detach(), expected, rtol=0, atol=1e-13)


def test_the_factor_is_one_for_whatever_is_as_old_as_the_run() -> None:
    assert all(bias_correction_factor(n, n, 0.9, 0.95) == 1.0 for n in (1, 2, 500))
    assert bias_correction_factor(10_000, 5_000, 0.9, 0.999) == pytest.approx(1.0, abs=0.01)


def test_without_it_the_first_step_would_have_another_length() -> None:
    """What the docstring says: with beta2 = 0.999, about 3 times too long."""
    assert 1 / bias_correction_factor(10**6, 1, 0.9, 0.999) == pytest.approx(0.1 / 0.001**0.5)
