"""FP8 options and fused kernels held to Transformer Engine itself, where it imports. No GPU; nothing computes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.models.test_parameter_table import needs_engine, run_module

pytestmark = [pytest.mark.te, needs_engine]


@pytest.fixture(scope="module")
def engine() -> dict[str, Any]:
    return json.loads(run_module("engine_precision"))


def test_chips_have_the_recipes_that_transformer_engine_says(engine: dict[str, Any]) -> None:
    assert len(engine["support"]) == 28
    assert {entry["theirs"] for entry in engine["support"]} == {True, False}
    assert [entry for entry in engine["support"] if entry["ours"] != entry["theirs"]] == []


def test_language_layers_are_in_fp8_and_the_encoder_and_the_first_layer_are_not(engine: dict[str, Any]) -> None:
    names = {"delayed": "TEDelayedScaling", "current": "Float8CurrentScaling", "blockwise": "Float8BlockScaling"}
    names["mxfp8"] = "MXFP8BlockScaling"
    assert set(engine["contexts"]) == set(names)
    for recipe, found in engine["contexts"].items():
        first = names[recipe] if recipe == "delayed" else "none"
        assert found["language"] == [first, *[names[recipe]] * 3]
        assert found["encoder"] == found["scoring"] == "none"
        assert found["extra state in checkpoints"] == []


def test_a_chip_that_lacks_the_recipe_builds_no_model(engine: dict[str, Any]) -> None:
    assert "mxfp8 needs compute capability 10.0, and this GPU has 9.0" in engine["refused"]


def test_kernels_are_found_and_taken(engine: dict[str, Any]) -> None:
    assert engine["kernels"]["rope"]
    assert engine["kernels"]["cross_entropy"] == "transformer_engine"
    fused = engine["fused"]
    assert fused["apply_rope_fusion"]
    assert fused["cross_entropy"] == "te"
    assert fused["cpu_offloading"]
    assert fused["offload context"] != "nullcontext"
    assert fused["overlapped gathers and reductions"] == []


def test_feed_forward_blocks_are_captured(engine: dict[str, Any]) -> None:
    """megatron-core's helper, with Transformer Engine there, finds each layer."""
    assert engine["captured"]["captured"] == ["transformer_engine", "mlp"]
    assert engine["captured"]["layers to capture"] == 4
    assert engine["fused"]["layers to capture"] == 0


def test_rows_that_ranks_share_are_attended_to_in_pieces(engine: dict[str, Any]) -> None:
    assert engine["shared rows"] == {
        "attention": "EngineContextAttention",
        "ranks that Transformer Engine would share with": False,
        "same parameters": True,
        # "self" is told the keys' borders and takes the queries'
        "kinds of attention": ["cross"],
        "mask": "padding_causal_bottom_right",
        "cu_seqlens": [[0, 4, 8], [0, 5, 14]],
    }


def test_user_buffers_are_asked_for_as_they_are_declared(engine: dict[str, Any]) -> None:
    buffers = engine["buffers"]
    assert buffers["shape"] == "[1024, 128]"  # 4 rows of 256 positions
    assert buffers["quantization_modes"].count("FP8:") == buffers["quantization_modes"].count("NONE:") == 1
    assert engine["overlapped"]["overlapped gathers and reductions"] == [
        "self_attention.linear_proj",
        "self_attention.linear_qkv",
        "mlp.linear_fc1",
        "mlp.linear_fc2",
    ]
