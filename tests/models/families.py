"""Tiny random encoders of the `transformers` library, and their weights under our names.

`transformers` is imported inside the functions, which run in processes of their own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

SHAPE = {"image_size": 32, "patch_size": 8, "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 3}
HEADS, HEAD_SIZE = 4, 8


def _interleaved(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """megatron-core keeps the rows of a head together: q, k and v of the first head, then of the second."""
    return torch.cat([t.view(HEADS, HEAD_SIZE, -1) for t in (query, key, value)], dim=1).flatten(0, 1).squeeze(-1)


def _layer(layer: Any, attention: Any, out: Any, norms: tuple[Any, Any]) -> dict[str, Tensor]:
    found = {}
    for kind in ("weight", "bias"):
        parts = [getattr(getattr(attention, name), kind) for name in ("q_proj", "k_proj", "v_proj")]
        found |= {
            f"self_attention.linear_qkv.{kind}": _interleaved(*parts),
            f"self_attention.linear_proj.{kind}": getattr(out, kind),
            f"input_layernorm.{kind}": getattr(norms[0], kind),
            f"pre_mlp_layernorm.{kind}": getattr(norms[1], kind),
            f"mlp.linear_fc1.{kind}": getattr(layer.mlp.fc1, kind),
            f"mlp.linear_fc2.{kind}": getattr(layer.mlp.fc2, kind),
        }
    return found


def _randomized(model: torch.nn.Module) -> Any:
    """Every parameter away from zero and one, so that none can be forgotten unseen."""
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise * 0.2 + (1.0 if "norm" in name and name.endswith("weight") else 0.0))
    return model.eval()


def _named(layers: list[dict[str, Tensor]], **others: Tensor) -> dict[str, Tensor]:
    found = {f"decoder.layers.{i}.{name}": value for i, layer in enumerate(layers) for name, value in layer.items()}
    return {**found, **{name.replace("__", "."): value for name, value in others.items()}}


def siglip(pixels: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    from transformers.models.siglip import SiglipVisionConfig, SiglipVisionModel

    model = _randomized(SiglipVisionModel(SiglipVisionConfig(**SHAPE, intermediate_size=64)))
    embeddings = model.embeddings
    weights = _named(
        [_layer(x, x.self_attn, x.self_attn.out_proj, (x.layer_norm1, x.layer_norm2)) for x in model.encoder.layers],
        patch_embedding__weight=embeddings.patch_embedding.weight.flatten(1),
        patch_embedding__bias=embeddings.patch_embedding.bias,
        position_embeddings__weight=embeddings.position_embedding.weight,
        decoder__final_layernorm__weight=model.post_layernorm.weight,
        decoder__final_layernorm__bias=model.post_layernorm.bias,
    )
    return weights, model(pixel_values=pixels, interpolate_pos_encoding=True).last_hidden_state


def clip(pixels: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Features of the last layer but one, without the final norm, as LLaVA takes them."""
    from transformers.models.clip import CLIPVisionConfig, CLIPVisionModel

    model = _randomized(CLIPVisionModel(CLIPVisionConfig(**SHAPE, intermediate_size=64)))
    embeddings = model.embeddings
    weights = _named(
        [_layer(x, x.self_attn, x.self_attn.out_proj, (x.layer_norm1, x.layer_norm2)) for x in model.encoder.layers[:-1]],
        patch_embedding__weight=embeddings.patch_embedding.weight.flatten(1),
        position_embeddings__weight=embeddings.position_embedding.weight,
        class_token=embeddings.class_embedding,
        pre_norm__weight=model.pre_layrnorm.weight,
        pre_norm__bias=model.pre_layrnorm.bias,
    )
    found = model(pixel_values=pixels, output_hidden_states=True, interpolate_pos_encoding=True)
    return weights, found.hidden_states[-2][:, 1:]


def dinov2(pixels: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """With two register tokens."""
    from transformers.models.dinov2_with_registers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    model = _randomized(Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**SHAPE, mlp_ratio=2, num_register_tokens=2)))
    weights = {**_dinov2_weights(model), "register_tokens": model.embeddings.register_tokens[0]}
    return weights, model(pixel_values=pixels).last_hidden_state[:, 3:]


def dinov2_plain(pixels: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Without registers."""
    from transformers.models.dinov2 import Dinov2Config, Dinov2Model

    model = _randomized(Dinov2Model(Dinov2Config(**SHAPE, mlp_ratio=2)))
    return _dinov2_weights(model), model(pixel_values=pixels).last_hidden_state[:, 1:]


def _dinov2_weights(model: Any) -> dict[str, Tensor]:
    embeddings = model.embeddings
    layers = [
        {
            **_layer(x, x.attention, x.attention.o_proj, (x.norm1, x.norm2)),
            "self_attn_bda.gamma": x.layer_scale1.lambda1,
            "mlp_bda.gamma": x.layer_scale2.lambda1,
        }
        for x in model.encoder.layer
    ]
    return _named(
        layers,
        patch_embedding__weight=embeddings.patch_embeddings.projection.weight.flatten(1),
        patch_embedding__bias=embeddings.patch_embeddings.projection.bias,
        position_embeddings__weight=embeddings.position_embeddings[0],
        class_token=embeddings.cls_token[0, 0],
        decoder__final_layernorm__weight=model.layernorm.weight,
        decoder__final_layernorm__bias=model.layernorm.bias,
    )
