"""DINOv2, with register tokens and without: class token, layer scale, a gated MLP in its largest size."""

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
from megatron_vlm.interop.mapping import Entry, Ignored, TensorMapping, VisionFamily, refuse
from megatron_vlm.interop.model_tensors import POSITIONS

_LAYER = "encoder.layer.{}."


def _gated_width(hidden: int, ratio: int) -> int:
    """Rows of the gate of the gated MLP, as the family's code rounds them."""
    return (int(hidden * ratio * 2 / 3) + 7) // 8 * 8


def read(config: Mapping[str, Any]) -> VisionConfig:
    sizes = vit_sizes(config, {"image_size": 224, "patch_size": 14, "num_hidden_layers": 12, "hidden_size": 768})
    hidden, ratio = sizes["hidden_size"], config.get("mlp_ratio", 4)
    gated = bool(config.get("use_swiglu_ffn"))
    refuse(
        "dinov2",
        [
            "qkv_bias is false, and this project's encoder has these biases" if not config.get("qkv_bias", True) else "",
            f"mlp_ratio {ratio} is no whole number" if int(ratio) != ratio else "",
        ],
    )
    return VisionConfig(
        kind="dinov2",
        **sizes,
        ffn_hidden_size=_gated_width(hidden, int(ratio)) if gated else hidden * int(ratio),
        num_attention_heads=int(config.get("num_attention_heads", 12)),
        activation="swiglu" if gated else read_activation("dinov2", config.get("hidden_act", "gelu")),
        norm_epsilon=float(config.get("layer_norm_eps", 1e-6)),
        register_tokens=int(config.get("num_register_tokens", 4))
        if config.get("model_type") == "dinov2_with_registers"
        else 0,
        pixel_mean=(0.485, 0.456, 0.406),
        pixel_std=(0.229, 0.224, 0.225),
    )


def write(vision: VisionConfig) -> dict[str, Any]:
    hidden, gated = vision.hidden_size, vision.activation == "swiglu"
    ratio = next((r for r in range(1, 17) if (_gated_width(hidden, r) if gated else hidden * r) == vision.ffn_width), None)
    refuse(
        "dinov2",
        ["" if ratio else f"an MLP of width {vision.ffn_width} is no whole multiple of {hidden}, which the family's is"],
    )
    return {
        "image_size": vision.image_size,
        "patch_size": vision.patch_size,
        "num_channels": 3,
        "num_hidden_layers": vision.num_layers - vision.skip_last_layers,
        "hidden_size": hidden,
        "mlp_ratio": ratio,
        "num_attention_heads": vision.num_attention_heads,
        "hidden_act": "gelu" if gated else write_activation(vision),
        "use_swiglu_ffn": gated,
        "layer_norm_eps": vision.norm_epsilon,
        "qkv_bias": True,
        **({"num_register_tokens": vision.register_tokens} if vision.register_tokens else {}),
    }


def mapping(vision: VisionConfig) -> TensorMapping:
    hidden, patch = vision.hidden_size, vision.patch_size
    names = LayerNames(
        _LAYER,
        ("attention.attention.query", "attention.attention.key", "attention.attention.value"),
        "attention.output.dense",
        ("norm1", "norm2"),
        *(("mlp.weights_in", "mlp.weights_out") if vision.activation == "swiglu" else ("mlp.fc1", "mlp.fc2")),
    )
    projection = "embeddings.patch_embeddings.projection"
    entries = [
        Entry(
            "vision.patch_embedding.weight",
            (f"{projection}.weight",),
            Same((hidden, 3 * patch**2), (hidden, 3, patch, patch)),
        ),
        Entry("vision.patch_embedding.bias", (f"{projection}.bias",), Same((hidden,))),
        Entry("vision.class_token", ("embeddings.cls_token",), Same((hidden,), (1, 1, hidden))),
        Entry(
            POSITIONS,
            ("embeddings.position_embeddings",),
            Same((vision.patches + 1, hidden), (1, vision.patches + 1, hidden)),
        ),
        *vit_layers(vision, names),
    ]
    for number in range(vision.num_layers - vision.skip_last_layers):
        for part, scale in (("self_attn_bda", "layer_scale1"), ("mlp_bda", "layer_scale2")):
            theirs = f"{_LAYER.format(number)}{scale}.lambda1"
            entries.append(Entry(f"vision.decoder.layers.{number}.{part}.gamma", (theirs,), Same((hidden,))))
    if vision.register_tokens:
        shape = (vision.register_tokens, hidden)
        entries.append(Entry("vision.register_tokens", ("embeddings.register_tokens",), Same(shape, (1, *shape))))
    filled: dict[str, tuple[Shape, float]] = {"embeddings.mask_token": ((1, hidden), 0.0)}
    if vision.final_norm:
        entries += norm_entries("vision.decoder.final_layernorm", "layernorm", hidden)
    else:
        filled |= {"layernorm.weight": ((hidden,), 1.0), "layernorm.bias": ((hidden,), 0.0)}
    ignored = (Ignored(skipped_layers(vision, _LAYER), "a layer after the one whose features are taken"),)
    return TensorMapping(tuple(entries), ignored, filled)


FAMILY = VisionFamily("dinov2", "Dinov2Model", read, write, mapping)
WITH_REGISTERS = VisionFamily("dinov2_with_registers", "Dinov2WithRegistersModel", read, write, mapping)
