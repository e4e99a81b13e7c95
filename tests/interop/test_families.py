"""What families cannot say is refused before anything is written, with the reason."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from megatron_vlm.config.model import LanguageConfig, ModelConfig, ProjectorConfig, VisionConfig
from megatron_vlm.interop.families import llava
from megatron_vlm.interop.mapping import Unexpressed
from megatron_vlm.interop.registry import LANGUAGE, vision_for

PLAIN = LanguageConfig(qk_layernorm=False)
#: a language model that each family can say, but for its share of a head
WHOLE_HEADS: dict[str, LanguageConfig] = {
    "llama": PLAIN,
    "mistral": PLAIN,
    "qwen2": replace(PLAIN, add_qkv_bias=True),
    "qwen3": LanguageConfig(),
    "olmo": replace(PLAIN, normalization="layernorm_gain"),
    "olmo2": LanguageConfig(norm_after=True, qk_layernorm_full_width=True),
    "gemma": LanguageConfig(
        hidden_size=256, activation="geglu", zero_centered_gamma=True, embedding_scale=16.0, qk_layernorm=False
    ),
}
PARTIAL: dict[str, LanguageConfig] = {
    "stablelm": LanguageConfig(normalization="layernorm_gain"),
    "gpt_neox": replace(PLAIN, normalization="layernorm", activation="gelu", add_bias_linear=True),
}


@pytest.mark.parametrize("family", WHOLE_HEADS)
def test_a_share_of_a_head_is_refused_where_the_class_turns_all_of_it(family: str) -> None:
    assert "partial_rotary_factor" not in LANGUAGE[family].write(WHOLE_HEADS[family], 100)["rope_parameters"]
    with pytest.raises(Unexpressed, match=r"rotary_percent is 0.5, and the family has 1.0"):
        LANGUAGE[family].write(replace(WHOLE_HEADS[family], rotary_percent=0.5), 100)


@pytest.mark.parametrize("family", PARTIAL)
def test_a_share_of_a_head_is_written_where_the_class_heeds_it(family: str) -> None:
    written = LANGUAGE[family].write(replace(PARTIAL[family], rotary_percent=0.5), 100)
    assert written["rope_parameters"]["partial_rotary_factor"] == 0.5


@pytest.mark.parametrize(("kind", "activation"), [("siglip", "swiglu"), ("clip", "geglu"), ("dinov2", "geglu")])
def test_an_encoders_gates_are_refused_where_the_family_has_none(kind: Any, activation: Any) -> None:
    vision = VisionConfig(kind=kind, activation=activation, final_norm=kind == "siglip", ffn_hidden_size=256)
    with pytest.raises(Unexpressed, match=rf"{kind}: model.vision.activation is {activation}, none of the family's gelu"):
        vision_for(vision).write(vision)


def test_raw_patches_are_no_features_of_a_layer() -> None:
    raw = ModelConfig(vision=VisionConfig(num_layers=0, final_norm=False), projector=ProjectorConfig("mlp2"))
    assert llava.problems(raw) == ["model.vision.num_layers is 0, and LLaVA takes the features of a layer"]
    assert llava.problems(replace(raw, vision=replace(raw.vision, num_layers=1))) == []
