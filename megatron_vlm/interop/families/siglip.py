"""SigLIP, and SigLIP 2 in its fixed resolutions: learned positions, no class token, pre-norm."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from megatron_vlm.config.model import VisionConfig
from megatron_vlm.interop.families.encoder import (
    LayerNames,
    norm_entries,
    read_activation,
    skipped_layers,
    vit_layers,
    vit_sizes,
    write_activation,
)
from megatron_vlm.interop.layouts import Same, Shape
from megatron_vlm.interop.mapping import Entry, Ignored, TensorMapping, VisionFamily
from megatron_vlm.interop.model_tensors import POSITIONS

NAMES = LayerNames(
    "encoder.layers.{}.",
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attn.out_proj",
    ("layer_norm1", "layer_norm2"),
)


def read(config: Mapping[str, Any]) -> VisionConfig:
    return VisionConfig(
        kind="siglip",
        **vit_sizes(config, {"image_size": 224, "patch_size": 16, "num_hidden_layers": 12, "hidden_size": 768}),
        ffn_hidden_size=int(config.get("intermediate_size", 3072)),
        num_attention_heads=int(config.get("num_attention_heads", 12)),
        activation=read_activation("siglip", config.get("hidden_act", "gelu_pytorch_tanh")),
        norm_epsilon=float(config.get("layer_norm_eps", 1e-6)),
    )


def write(vision: VisionConfig) -> dict[str, Any]:
    return {
        "image_size": vision.image_size,
        "patch_size": vision.patch_size,
        "num_channels": 3,
        "num_hidden_layers": vision.num_layers - vision.skip_last_layers,
        "hidden_size": vision.hidden_size,
        "intermediate_size": vision.ffn_width,
        "num_attention_heads": vision.num_attention_heads,
        "hidden_act": write_activation(vision),
        "layer_norm_eps": vision.norm_epsilon,
        "vision_use_head": False,
    }


def mapping(vision: VisionConfig) -> TensorMapping:
    hidden, patch = vision.hidden_size, vision.patch_size
    entries = [
        Entry(
            "vision.patch_embedding.weight",
            ("embeddings.patch_embedding.weight",),
            Same((hidden, 3 * patch**2), (hidden, 3, patch, patch)),
        ),
        Entry("vision.patch_embedding.bias", ("embeddings.patch_embedding.bias",), Same((hidden,))),
        Entry(POSITIONS, ("embeddings.position_embedding.weight",), Same((vision.patches, hidden))),
        *vit_layers(vision, NAMES),
    ]
    filled: dict[str, tuple[Shape, float]] = {}
    if vision.final_norm:
        entries += norm_entries("vision.decoder.final_layernorm", "post_layernorm", hidden)
    else:
        filled = {"post_layernorm.weight": ((hidden,), 1.0), "post_layernorm.bias": ((hidden,), 0.0)}
    ignored = (
        Ignored(skipped_layers(vision, NAMES.layer), "a layer after the one whose features are taken"),
        Ignored(r"head\..*", "the head that pools a picture into one vector"),
        Ignored(r"embeddings\.position_ids", "a buffer"),
        Ignored(r"(text_model\..*|logit_scale|logit_bias)", "the text tower"),
    )
    return TensorMapping(tuple(entries), ignored, filled)


FAMILY = VisionFamily("siglip_vision_model", "SiglipVisionModel", read, write, mapping)
