"""FP8 that cannot run is refused with the field, the reason and a value that works: each test applies that value."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from megatron_vlm.config.checks import problems
from megatron_vlm.config.loading import load_config, preset_names
from megatron_vlm.config.precision import LEAST_CAPABILITY, Recipe, chip_problem
from megatron_vlm.config.run import RunConfig

BASE = ["--data.tokenizer", "t", "--data.sources", "{text: a, captions: b}", "--schedule.train_steps", "100"]
CURRENT = ["--precision.fp8", "current"]


def tiny(*overrides: str) -> RunConfig:
    return load_config(preset="tiny", overrides=[*BASE, *overrides])


def about(field: str, *overrides: str, ranks: int = 1) -> str:
    lines = [line for line in problems(tiny(*overrides), ranks) if line.startswith(field)]
    assert lines, f"nothing about {field} in {problems(tiny(*overrides), ranks)}"
    return lines[0]


@pytest.mark.parametrize("recipe", LEAST_CAPABILITY)
def test_presets_take_every_recipe(recipe: str) -> None:
    for name in preset_names():
        config = load_config(preset=name, overrides=[*BASE, "--precision.fp8", recipe])
        tp = config.parallel.tensor_model_parallel_size
        if (name, recipe) == ("vlm_7b", "blockwise"):  # 11008 / 4 is 21.5 blocks of 128
            (line,) = [line for line in problems(config, tp) if "precision" in line]
            assert line.startswith("model.language.ffn_hidden_size: 11008 is no multiple of 128 on each of 4")
            config, tp = replace(config, parallel=replace(config.parallel, tensor_model_parallel_size=2)), 2
        assert [line for line in problems(config, tp) if "precision" in line] == [], name


CHIPS: list[tuple[Recipe, tuple[int, int] | None, str | None]] = [
    ("none", None, None),
    ("current", None, "none"),
    ("delayed", (8, 0), r"none \(bf16\)"),
    ("delayed", (8, 9), None),
    ("blockwise", (8, 9), "current"),
    ("blockwise", (9, 0), None),
    ("mxfp8", (9, 0), "blockwise"),
    ("mxfp8", (8, 9), "current"),
    ("mxfp8", (10, 0), None),
    ("mxfp8", (12, 0), "current"),
]


@pytest.mark.parametrize(("recipe", "capability", "nearest"), CHIPS)
def test_a_chip_that_lacks_a_recipe_is_told_the_nearest(
    recipe: Recipe, capability: tuple[int, int] | None, nearest: str | None
) -> None:
    problem = chip_problem(recipe, capability)
    if nearest is None:
        assert problem is None
        return
    assert problem is not None
    assert re.search(f"(runs: |set it to ){nearest}$", problem)
    if capability is not None and "bf16" not in nearest:
        assert chip_problem(nearest, capability) is None  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("overrides", "field", "reason"),
    [
        (["--parallel.device", "cpu"], "precision.fp8", "parallel.device is cpu"),
        (["--parallel.layer_spec", "host"], "precision.fp8", "parallel.layer_spec is host"),
        (["--parallel.precision", "fp32"], "precision.fp8", "parallel.precision is fp32"),
        (["--precision.fp8_history", "0"], "precision.fp8_history", "at least 1"),
        (["--precision.first_layers_in_bf16", "5"], "precision.first_layers_in_bf16", "from 0 to 4"),
        (["--precision.last_layers_in_bf16", "-1"], "precision.last_layers_in_bf16", "at least 0"),
    ],
)
def test_what_fp8_needs(overrides: list[str], field: str, reason: str) -> None:
    assert reason in about(field, *CURRENT, *overrides)


def test_delayed_scaling_leaves_no_layer_out() -> None:
    layers = ["--precision.first_layers_in_bf16", "1"]
    assert "to current" in about("precision.first_layers_in_bf16", "--precision.fp8", "delayed", *layers)
    assert problems(tiny(*CURRENT, *layers), 1) == []


def test_without_a_recipe_its_options_are_refused() -> None:
    assert "choose a recipe" in about("precision.fp8_vision", "--precision.fp8_vision", "true")


def test_sizes_that_no_block_fits() -> None:
    width = ["--model.language.ffn_hidden_size", "200"]
    line = about("model.language.ffn_hidden_size", *CURRENT, *width)
    nearest = re.search(r"nearest that is: (\d+)", line)
    assert nearest is not None
    assert problems(tiny(*CURRENT, "--model.language.ffn_hidden_size", nearest[1]), 1) == []
    assert problems(tiny(*width), 1) == []
    # 384 is three blocks of 128, of which two ranks have one and a half
    tp = ["--precision.fp8", "blockwise", "--parallel.tensor_model_parallel_size", "2"]
    assert "each of 2 tensor-parallel ranks" in about("model.language.ffn_hidden_size", *tp, ranks=2)


def test_rows_that_no_block_fits() -> None:
    line = about("data.sequence_length", *CURRENT, "--data.sequence_length", "270", "--schedule.micro_batch_size", "1")
    assert "272" in line


def test_an_encoder_in_fp8_needs_whole_blocks_of_rows() -> None:
    assert problems(tiny(*CURRENT, "--precision.fp8_vision", "true"), 1) == []
    prefix = ["--model.vision", "{kind: dinov2}"]
    assert "17 rows" in about("precision.fp8_vision", *CURRENT, "--precision.fp8_vision", "true", *prefix)
    native = ["--data.pictures.resize", "native"]
    assert "native" in about("precision.fp8_vision", *CURRENT, "--precision.fp8_vision", "true", *native)
    assert not [line for line in problems(tiny(*CURRENT, *native), 1) if "precision" in line]
