"""Variants of the language model that cannot run are refused with a value that works."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from megatron_vlm.config.language_checks import language_problems
from megatron_vlm.config.model import LanguageConfig


def test_the_defaults_have_no_problem() -> None:
    assert list(language_problems(LanguageConfig())) == []


@pytest.mark.parametrize(
    ("change", "reason", "remedy"),
    [
        ({"kv_channels": 33}, "33 is odd", {"kv_channels": 34}),
        ({"rotary_percent": 0.01}, "turns 1 channels", {"rotary_percent": 1.0}),
        ({"zero_centered_gamma": True, "normalization": "layernorm"}, "only with", {"normalization": "rmsnorm"}),
        ({"qk_layernorm": False, "qk_layernorm_full_width": True}, "set that to true", {"qk_layernorm": True}),
        (
            {"normalization": "layernorm", "qk_layernorm_full_width": True},
            "a gain alone",
            {"normalization": "layernorm_gain"},
        ),
        ({"norm_after": True, "parallel_residual": True}, "set one to false", {"parallel_residual": False}),
    ],
)
def test_what_cannot_be_is_refused_and_the_remedy_works(change: dict[str, Any], reason: str, remedy: dict[str, Any]) -> None:
    (line,) = language_problems(replace(LanguageConfig(), **change))
    assert reason in line
    assert line.startswith("model.language.")
    assert list(language_problems(replace(LanguageConfig(), **{**change, **remedy}))) == []
