"""LLaVA: an encoder, two matrices with a GELU between them, a decoder; picture rows in place of their placeholders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from megatron_vlm.config.model import ModelConfig, ProjectorConfig, VisionConfig
from megatron_vlm.interop.layouts import Same
from megatron_vlm.interop.mapping import (
    Entry,
    LanguageFamily,
    TensorMapping,
    Unexpressed,
    VisionFamily,
    refuse,
)

MODEL_TYPE, ARCHITECTURE = "llava", "LlavaForConditionalGeneration"

#: names as transformers has them in memory or had them in earlier versions -> as this file writes them
_SPELLINGS = (
    ("model.language_model.", "language_model.model."),
    ("lm_head.", "language_model.lm_head."),
    ("model.vision_tower.", "vision_tower."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
    ("vision_tower.vision_model.", "vision_tower."),
)


def spelling(name: str) -> str:
    for old, new in _SPELLINGS:
        if name.startswith(old):
            name = new + name.removeprefix(old)
    return name


def features(config: Mapping[str, Any], vision: VisionConfig) -> VisionConfig:
    """The encoder with the features that this LLaVA takes of it.

    `vision_feature_layer` counts hidden states, of which the last is that before any norm. Raises Unexpressed.
    """
    layer, strategy = config.get("vision_feature_layer", -2), config.get("vision_feature_select_strategy", "default")
    if not isinstance(layer, int):
        raise Unexpressed(f"llava: vision_feature_layer {layer}: several layers side by side; the model takes one")
    skip = -1 - layer if layer < 0 else vision.num_layers - layer
    stripped = 1 if strategy == "default" else 0
    refuse(
        "llava",
        [
            f"vision_feature_layer {layer}: the encoder has {vision.num_layers} layers"
            if not 0 <= skip < vision.num_layers
            else "",
            f"vision_feature_select_strategy {strategy!r} takes off {stripped} of the {vision.prefix_tokens} tokens that "
            f"the encoder has before its patches, and the model takes patches alone"
            if stripped != vision.prefix_tokens
            else "",
        ],
    )
    return replace(vision, skip_last_layers=skip, final_norm=False)


def read_projector(config: Mapping[str, Any]) -> ProjectorConfig:
    act = config.get("projector_hidden_act", "gelu")
    refuse(
        "llava",
        [
            f"projector_hidden_act {act!r}, not gelu" if act != "gelu" else "",
            "multimodal_projector_bias is false" if not config.get("multimodal_projector_bias", True) else "",
        ],
    )
    return ProjectorConfig(kind="mlp2")


def problems(model: ModelConfig) -> list[str]:
    """Why a model is no LLaVA; empty where it is one."""
    projector, vision = model.projector, model.vision
    found = []
    if projector.kind != "mlp2":
        found.append(f"model.projector.kind is {projector.kind}, and LLaVA's has two matrices")
    if (projector.hidden_size or model.language.hidden_size) != model.language.hidden_size:
        found.append(f"model.projector.hidden_size {projector.hidden_size} is not the language model's width")
    if projector.pixel_shuffle != 1:
        found.append(f"model.projector.pixel_shuffle is {projector.pixel_shuffle}, and LLaVA folds no patches")
    if vision.final_norm:
        found.append("model.vision.final_norm is true, and LLaVA takes features before the norm after the last layer")
    if not vision.num_layers:
        found.append("model.vision.num_layers is 0, and LLaVA takes the features of a layer")
    if vision.prefix_tokens > 1:
        found.append(f"{vision.prefix_tokens} tokens before the patches, of which LLaVA takes off one")
    return found


def write(model: ModelConfig, language: LanguageFamily, vision: VisionFamily, rows: int, image_token: int) -> dict[str, Any]:
    refuse("llava", problems(model))
    return {
        "image_token_index": image_token,
        "image_seq_length": model.image_tokens,
        "projector_hidden_act": "gelu",
        "multimodal_projector_bias": True,
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "default" if model.vision.prefix_tokens else "full",
        "tie_word_embeddings": not model.language.untie_embeddings,
        "text_config": {"model_type": language.model_type, **language.write(model.language, rows)},
        "vision_config": {"model_type": vision.model_type, **vision.write(model.vision)},
    }


def mapping(model: ModelConfig, language: TensorMapping, vision: TensorMapping) -> TensorMapping:
    wide, into = model.language.hidden_size, model.vision.hidden_size
    entries = []
    for ours, theirs, size in (("linear_fc1", "linear_1", into), ("linear_fc2", "linear_2", wide)):
        there = f"multi_modal_projector.{theirs}"
        entries += [
            Entry(f"projector.{ours}.weight", (f"{there}.weight",), Same((wide, size))),
            Entry(f"projector.{ours}.bias", (f"{there}.bias",), Same((wide,))),
        ]
    return language.prefixed("language_model.").joined(vision.prefixed("vision_tower."), TensorMapping(tuple(entries)))
