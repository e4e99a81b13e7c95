"""Parameters by module and rank are those of the tensors that the model has."""

from __future__ import annotations

from math import prod

import pytest

from megatron_vlm.config.loading import load_config
from megatron_vlm.config.model import ModelConfig
from megatron_vlm.interop.model_tensors import model_tensors
from megatron_vlm.planning.layout import Layout
from megatron_vlm.planning.parameters import layer_updates, rank_parameters, rank_trained_parameters, total_parameters

ROWS = 4096


def tiny(**fields: str) -> ModelConfig:
    """With a head of keys and values for each of queries."""
    fields = {"language__num_query_groups": "null", **fields}
    overrides = [word for name, value in fields.items() for word in (f"--model.{name.replace('__', '.')}", value)]
    return load_config(preset="tiny", overrides=overrides).model


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"language__add_qkv_bias": "true"},
        {"language__add_bias_linear": "true"},
        {"language__add_bias_linear": "true", "language__activation": "gelu", "language__normalization": "layernorm"},
        {"language__qk_layernorm_full_width": "true", "language__num_query_groups": "2"},
        {"language__normalization": "layernorm"},
        {"language__kv_channels": "48", "language__untie_embeddings": "false"},
    ],
    ids=str,
)
def test_parameters_are_those_of_the_model_s_tensors(fields: dict[str, str]) -> None:
    model = tiny(**fields)
    counted = dict.fromkeys(total_parameters(model, ROWS), 0)
    for name, shape in model_tensors(model, ROWS).items():
        counted[name.split(".")[0].replace("language_model", "language")] += prod(shape)
    assert total_parameters(model, ROWS) == counted


def test_what_tensor_parallel_ranks_share_of_biases_and_norms() -> None:
    """Of two ranks each has half of the biases of qkv and fc1, and of gains over all heads; the others it has whole."""
    plain, layers = tiny(), tiny().language.num_layers
    hidden, width, mixed = plain.language.hidden_size, plain.language.ffn_width, 3 * plain.language.hidden_size

    def on_rank(model: ModelConfig) -> int:
        return rank_parameters(model, ROWS, Layout(2, tensor=2), 0)["language"]

    biases = on_rank(tiny(language__add_bias_linear="true")) - on_rank(plain)
    assert biases == layers * ((mixed + 2 * width) // 2 + 2 * hidden)
    assert on_rank(tiny(language__add_qkv_bias="true")) - on_rank(plain) == layers * mixed // 2
    head = plain.language.head_dim
    gains = on_rank(tiny(language__qk_layernorm_full_width="true")) - on_rank(plain)
    assert gains == layers * (2 * hidden // 2 - 2 * head)


def test_low_rank_updates_are_what_is_trained_of_the_language_model() -> None:
    """A is [rank, in], B [out, rank]. Two ranks split B of qkv and fc1, A of proj and fc2; the others they have whole."""
    plain, updated = tiny(), tiny(lora__rank="4")
    hidden, width, layers = plain.language.hidden_size, plain.language.ffn_width, plain.language.num_layers
    split, whole = 4 * (3 * hidden + hidden + 2 * width + width), 4 * 4 * hidden
    assert (layer_updates(updated).split, layer_updates(updated).whole) == (split, whole)
    assert total_parameters(updated, ROWS)["language"] - total_parameters(plain, ROWS)["language"] == layers * (
        split + whole
    )
    layout = Layout(2, tensor=2)
    held = rank_parameters(updated, ROWS, layout, 0)
    assert held["language"] - rank_parameters(plain, ROWS, layout, 0)["language"] == layers * (split // 2 + whole)
    trained = rank_trained_parameters(updated, ROWS, layout, 0, ("vision",))
    assert trained == layers * (split // 2 + whole) + held["projector"]
    assert rank_trained_parameters(updated, ROWS, layout, 0, ("vision", "language")) == held["projector"]
    assert layer_updates(tiny(lora__rank="4", lora__targets="[fc2]")).total == 4 * (width + hidden)
    assert layer_updates(plain).total == 0
