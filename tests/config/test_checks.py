"""What cannot run is refused with the field, the reason and a value that would work; presets have the paper's shapes."""

from __future__ import annotations

import pytest

from megatron_vlm.config.checks import problems
from megatron_vlm.config.loading import from_map, load_config, preset_names, to_map
from megatron_vlm.config.run import RunConfig
from megatron_vlm.errors import ConfigError

BASE = ["--data.tokenizer", "t", "--data.sources", "{text: a, captions: b}", "--schedule.train_steps", "100"]


def tiny(*overrides: str) -> RunConfig:
    return load_config(preset="tiny", overrides=[*BASE, *overrides])


def test_a_good_run_has_no_problem() -> None:
    assert problems(tiny(), 2) == []


@pytest.mark.parametrize(
    ("overrides", "ranks", "field", "remedy"),
    [
        (["--parallel.tensor_model_parallel_size", "3"], 3, "parallel.tensor_model_parallel_size", "nearest that does: 2"),
        (["--parallel.pipeline_model_parallel_size", "3"], 3, "parallel.pipeline_model_parallel_size", "or 3 layers"),
        (["--schedule.global_batch_size", "7"], 1, "schedule.global_batch_size", "nearest that is: 8"),
        (["--data.sequence_length", "4"], 1, "data.sequence_length", "at least 5"),
        (["--parallel.sequence_parallel", "true"], 1, "parallel.sequence_parallel", "set it to false"),
        (["--schedule.warmup_steps", "100"], 1, "schedule.warmup_steps", "at most 99"),
        (["--model.language.num_query_groups", "3"], 1, "model.language.num_query_groups", "nearest that does: 2"),
        (["--curriculum.stages.1.until", "0.9"], 1, "curriculum.stages.1 (images)", "set it to 1.0"),
        (["--curriculum.stages.1.sources.video", "0.1"], 1, "curriculum.stages.1 (images).sources.video", "PREFIX"),
    ],
)
def test_a_bad_run_is_refused_with_a_remedy(overrides: list[str], ranks: int, field: str, remedy: str) -> None:
    assert any(line.startswith(field) and remedy in line for line in problems(tiny(*overrides), ranks))


def test_an_unknown_key_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"schedule\.global_batchsize: unknown key; did you mean 'global_batch_size'"):
        tiny("--schedule.global_batchsize", "8")


@pytest.mark.parametrize("name", preset_names())
def test_presets_round_trip(name: str) -> None:
    config = load_config(preset=name)
    assert from_map(to_map(config)) == config


@pytest.mark.parametrize(
    ("name", "layers", "heads", "hidden", "warmup", "lr", "batch"),
    [
        ("vlm_79m", 8, 4, 512, 400, 3e-3, 512),
        ("vlm_1b", 24, 16, 2048, 5000, 1e-2, 256),
        ("vlm_7b", 32, 32, 4096, 5000, 2e-3, 2048),
    ],
)
def test_presets_have_the_papers_shapes(
    name: str, layers: int, heads: int, hidden: int, warmup: int, lr: float, batch: int
) -> None:
    """Table of arXiv 2503.07603."""
    config = load_config(preset=name)
    language, schedule = config.model.language, config.schedule
    assert (language.num_layers, language.num_attention_heads, language.hidden_size) == (layers, heads, hidden)
    assert (schedule.warmup_steps, schedule.lr, schedule.global_batch_size) == (warmup, lr, batch)
    assert language.ffn_width == 256 * -(-(8 * hidden) // (3 * 256))
    assert config.model.image_tokens == 729
    assert config.curriculum.stages[0].until == 0.8


def test_stage_borders_are_whole_steps() -> None:
    assert tiny("--curriculum.stages.0.until", "0.6").stage_ends() == (60, 100)
    assert [tiny().stage_of(step) for step in (0, 59, 60, 99)] == [0, 0, 1, 1]
