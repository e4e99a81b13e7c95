"""CLIP's picture tower: a class token, a norm before the layers, quick-GELU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from megatron_vlm.config.model import VisionConfig
from megatron_vlm.interop.families import siglip
from megatron_vlm.interop.families.encoder import (
    norm_entries,
    read_activation,
    skipped_layers,
    vit_layers,
    vit_sizes,
)
from megatron_vlm.interop.layouts import Same
from megatron_vlm.interop.mapping import Entry, Ignored, TensorMapping, VisionFamily, refuse
from megatron_vlm.interop.model_tensors import POSITIONS


def read(config: Mapping[str, Any]) -> VisionConfig:
    """With the features that the tower itself gives out: no norm after the last layer (its own is for the pooled vector)."""
    return VisionConfig(
        kind="clip",
        **vit_sizes(config, {"image_size": 224, "patch_size": 32, "num_hidden_layers": 12, "hidden_size": 768}),
        ffn_hidden_size=int(config.get("intermediate_size", 3072)),
        num_attention_heads=int(config.get("num_attention_heads", 12)),
        activation=read_activation("clip", config.get("hidden_act", "quick_gelu")),
        norm_epsilon=float(config.get("layer_norm_eps", 1e-5)),
        pixel_mean=(0.48145466, 0.4578275, 0.40821073),
        pixel_std=(0.26862954, 0.26130258, 0.27577711),
        final_norm=False,
    )


def write(vision: VisionConfig) -> dict[str, Any]:
    refuse(
        "clip",
        ["model.vision.final_norm is true, and CLIP's tower norms its class token alone" if vision.final_norm else ""],
    )
    fields = siglip.write(vision)
    del fields["vision_use_head"]
    return fields


def mapping(vision: VisionConfig) -> TensorMapping:
    hidden, patch = vision.hidden_size, vision.patch_size
    entries = (
        Entry(
            "vision.patch_embedding.weight",
            ("embeddings.patch_embedding.weight",),
            Same((hidden, 3 * patch**2), (hidden, 3, patch, patch)),
        ),
        Entry("vision.class_token", ("embeddings.class_embedding",), Same((hidden,))),
        Entry(POSITIONS, ("embeddings.position_embedding.weight",), Same((vision.patches + 1, hidden))),
        *norm_entries("vision.pre_norm", "pre_layrnorm", hidden),
        *vit_layers(vision, siglip.NAMES),
    )
    ignored = (
        Ignored(skipped_layers(vision, siglip.NAMES.layer), "a layer after the one whose features are taken"),
        Ignored(r"embeddings\.position_ids", "a buffer"),
        Ignored(r"(text_model\..*|logit_scale|(text|visual)_projection\.weight)", "the text tower"),
    )
    filled = {"post_layernorm.weight": ((hidden,), 1.0), "post_layernorm.bias": ((hidden,), 0.0)}
    return TensorMapping(entries, ignored, filled)


FAMILY = VisionFamily("clip_vision_model", "CLIPVisionModel", read, write, mapping)
