"""Parameters of a model by module and by rank, counted from its shapes as the real model has them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from megatron_vlm.config.model import ModelConfig, VisionConfig
from megatron_vlm.planning.layout import Layout

MODULES = ("language", "vision", "projector")


@dataclass(frozen=True)
class Count:
    """Parameters that tensor-parallel ranks share, and those that each of them has whole."""

    split: int = 0
    whole: int = 0

    def __add__(self, other: Count) -> Count:
        return Count(self.split + other.split, self.whole + other.whole)

    def __mul__(self, times: int) -> Count:
        return Count(self.split * times, self.whole * times)

    @property
    def total(self) -> int:
        return self.split + self.whole

    def on_rank(self, tensor: int) -> int:
        return self.split // tensor + self.whole


def language_layer(model: ModelConfig) -> Count:
    language = model.language
    hidden, head = language.hidden_size, language.head_dim
    heads, groups = language.num_attention_heads, language.query_groups
    up = 2 if language.gated else 1
    vectors = 2 if language.normalization == "layernorm" else 1
    matrices = hidden * head * (2 * heads + 2 * groups) + hidden * language.ffn_width * (up + 1)
    return Count(matrices, vectors * (2 * hidden + (2 * head if language.qk_layernorm else 0)))


def embedding(model: ModelConfig, vocab_size: int) -> Count:
    """The word embedding, or the output layer, which is as large. `vocab_size` is the padded one."""
    return Count(vocab_size * model.language.hidden_size)


def final_norm(model: ModelConfig) -> Count:
    return Count(0, model.language.hidden_size * (2 if model.language.normalization == "layernorm" else 1))


def vision_encoder(model: ModelConfig) -> Count:
    """Of all encoders."""
    return sum((_encoder(vision) for vision in model.encoders), Count())


def _encoder(vision: VisionConfig) -> Count:
    hidden, width = vision.hidden_size, vision.ffn_width
    up = 2 if vision.gated else 1
    layer = Count(
        4 * hidden * hidden + 3 * hidden + hidden * width * (up + 1) + up * width,
        6 * hidden + (2 * hidden if vision.kind == "dinov2" else 0),  # norms, biases after reductions, layer scale
    )
    has_class = vision.kind != "siglip"
    rows = vision.patches + has_class + has_class + vision.register_tokens
    outside = 3 * vision.patch_size**2 * hidden + (hidden if vision.kind != "clip" else 2 * hidden) + rows * hidden
    outside += 2 * hidden if vision.final_norm else 0
    return layer * (vision.num_layers - vision.skip_last_layers) + Count(0, outside)


def projector(model: ModelConfig) -> Count:
    size, out = model.vision_width * model.projector.pixel_shuffle**2, model.language.hidden_size
    width = model.projector.hidden_size or out
    if model.projector.kind == "linear":
        return Count(size * out + out)
    middle = width * width + width if model.projector.kind == "mlp3" else 0
    return Count(size * width + width + middle + width * out, out)


def total_parameters(model: ModelConfig, vocab_size: int) -> dict[str, int]:
    """Parameters of the whole model by module."""
    language = language_layer(model) * model.language.num_layers + embedding(model, vocab_size) + final_norm(model)
    if model.language.untie_embeddings:
        language += embedding(model, vocab_size)
    return {"language": language.total, "vision": vision_encoder(model).total, "projector": projector(model).total}


def rank_parameters(model: ModelConfig, vocab_size: int, layout: Layout, stage: int) -> dict[str, int]:
    """Parameters on each rank of a pipeline stage by module."""
    tensor, last = layout.tensor, layout.pipeline - 1
    language = language_layer(model) * sum(layout.layers(model.language.num_layers)[stage])
    if stage == 0:
        language += embedding(model, vocab_size)
    if stage == last:
        language += final_norm(model)
        if model.language.untie_embeddings or last > 0:  # a tied output layer far from the embedding is a copy of it
            language += embedding(model, vocab_size)
    found = {"language": language.on_rank(tensor), "vision": 0, "projector": 0}
    if stage == 0 or layout.vision == "data_all_stages":
        found["vision"] = vision_encoder(model).on_rank(layout.encoder_split)
        found["projector"] = projector(model).on_rank(layout.encoder_split)
    return found


def trained_parameters(parameters: dict[str, int], frozen: Iterable[str]) -> int:
    """Those of modules that have gradients; prefixes of parameters' names are passed over, as in `step_flops`."""
    return sum(count for module, count in parameters.items() if module not in set(frozen))
