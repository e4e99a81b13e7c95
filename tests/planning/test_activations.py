"""The sums of kept tensors are those of the published formula and its table.

Korthikanti et al. 2022 (arXiv 2205.05198): section 4.1 and table 2, bytes of a layer in 16 bits with s positions, b
sequences, hidden size h, a heads and t tensor-parallel ranks.
"""

from __future__ import annotations

import pytest

from megatron_vlm.config.model import Activation, LanguageConfig, ModelConfig, VisionConfig
from megatron_vlm.planning.activations import Kernels, bytes_a_position, encoder_layer_keeps, language_layer_keeps

#: table 3: heads, hidden size
SIZES = {"22B": (64, 6144), "175B": (96, 12288), "530B": (128, 20480), "1T": (160, 25600)}
S, T = 2048, 8


def model(heads: int, hidden: int) -> ModelConfig:
    return ModelConfig(
        language=LanguageConfig(
            num_layers=1,
            hidden_size=hidden,
            num_attention_heads=heads,
            ffn_hidden_size=4 * hidden,
            normalization="layernorm",
            activation="gelu",
            qk_layernorm=False,
        )
    )


def layer(size: str, recompute: str, tensor: int, sequence_parallel: bool, kernels: Kernels = "unfused") -> float:
    heads, hidden = SIZES[size]
    keeps = language_layer_keeps(model(heads, hidden), kernels, "bf16", recompute, S)  # type: ignore[arg-type]
    return S * bytes_a_position(keeps, tensor, sequence_parallel)


@pytest.mark.parametrize("size", SIZES)
def test_table_2(size: str) -> None:
    a, h = SIZES[size]
    sbh, scores = S * h, 5 * a * S / h
    assert layer(size, "none", 1, False) == pytest.approx(sbh * (34 + scores))
    assert layer(size, "none", T, False) == pytest.approx(sbh * (10 + 24 / T + scores / T))
    assert layer(size, "none", T, True) == pytest.approx(sbh / T * (34 + scores))
    assert layer(size, "selective", T, False) == pytest.approx(sbh * (10 + 24 / T))
    assert layer(size, "selective", T, True) == pytest.approx(sbh * 34 / T)
    assert layer(size, "full", 1, False) == pytest.approx(sbh * 2)


@pytest.mark.parametrize(("size", "published"), [("175B", 80), ("530B", 64)])
def test_scores_take_what_section_5_says(size: str, published: float) -> None:
    """Section 5 gives 5 a s / h as 80 for GPT-3 and 64 for MT-NLG."""
    heads, hidden = SIZES[size]
    kept = layer(size, "none", 1, False) - layer(size, "selective", 1, False)
    assert kept / (S * hidden) == pytest.approx(published)


def test_selective_recomputation_spares_nothing_where_no_scores_are_kept() -> None:
    """Flash attention keeps a sum of exponentials a head and position, which is all that it spares."""
    spared = layer("22B", "none", T, True, "fused") - layer("22B", "selective", T, True, "fused")
    assert spared == pytest.approx(4 * 64 / T * S)
    assert spared < 0.02 * layer("22B", "none", T, True, "fused")


def test_fp8_keeps_inputs_of_products_in_a_byte() -> None:
    heads, hidden = SIZES["22B"]
    sums = {
        precision: bytes_a_position(language_layer_keeps(model(heads, hidden), "fused", precision, "none", S), 1, False)
        for precision in ("bf16", "fp8")
    }
    # inputs of qkv, fc1 (h each) and fc2 (4 h) go from two bytes to one, and one of h is kept besides
    assert sums["bf16"] - sums["fp8"] == pytest.approx((6 - 1) * hidden)


def gated_or_not(activation: Activation) -> ModelConfig:
    sizes = {"hidden_size": 64, "num_attention_heads": 4, "ffn_hidden_size": 96}
    language = LanguageConfig(**sizes, activation=activation)  # type: ignore[arg-type]
    return ModelConfig(language=language, vision=VisionConfig(**sizes, activation=activation))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    # beside the output of the up matrix: that of the gate; on the host also the gate's activation and its halves apart
    ("kernels", "beside"),
    [("fused", 1), ("unfused", 1), ("host", 3)],
)
@pytest.mark.parametrize("gate", ["swiglu", "geglu"])
def test_a_gate_keeps_what_it_keeps_whatever_its_activation(gate: Activation, kernels: Kernels, beside: int) -> None:
    gated, plain = (
        bytes_a_position(language_layer_keeps(gated_or_not(name), kernels, "bf16", "none", S), 1, False)
        for name in (gate, "gelu_tanh")
    )
    assert gated - plain == 2 * 96 * beside
    gated, plain = (
        bytes_a_position(encoder_layer_keeps(gated_or_not(name), kernels, "bf16"), 1, False) for name in (gate, "gelu_tanh")
    )
    assert gated - plain == 2 * 96 * beside
