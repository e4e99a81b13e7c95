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


def layer_matrices(model: ModelConfig) -> Count:
    """Weights of a language layer's matrices, without low-rank updates."""
    language = model.language
    hidden, head = language.hidden_size, language.head_dim
    heads, groups = language.num_attention_heads, language.query_groups
    up = 2 if language.gated else 1
    return Count(hidden * head * (2 * heads + 2 * groups) + hidden * language.ffn_width * (up + 1))


def _layer_vectors(model: ModelConfig) -> Count:
    """Biases and norms of a language layer."""
    language = model.language
    hidden, queries, keys = language.hidden_size, language.num_attention_heads, language.query_groups
    head, norm = language.head_dim, 2 if language.normalization == "layernorm" else 1
    found = Count(0, norm * 2 * hidden)
    if language.qk_layernorm:
        # over all heads together each rank has the gains of its own heads; else all heads have the same
        found += Count(norm * head * (queries + keys)) if language.qk_layernorm_full_width else Count(0, norm * 2 * head)
    if language.add_qkv_bias or language.add_bias_linear:
        found += Count(head * (queries + 2 * keys))
    if language.add_bias_linear:  # what is added after a reduction is whole on every rank
        found += Count((2 if language.gated else 1) * language.ffn_width, 2 * hidden)
    return found


def layer_updates(model: ModelConfig) -> Count:
    """Low-rank matrices beside those of a language layer: the side that the matrix is split by is split with it."""
    return sum(low_rank_sides(model).values(), Count()) * model.lora.rank


def low_rank_sides(model: ModelConfig) -> dict[str, Count]:
    """Of each matrix with a low-rank update: its side that tensor-parallel ranks split, and the one that they do not."""
    language, lora = model.language, model.lora
    hidden, width = language.hidden_size, language.ffn_width
    queries, keys = language.num_attention_heads * language.head_dim, language.query_groups * language.head_dim
    up = 2 if language.gated else 1
    split = {"qkv": queries + 2 * keys, "proj": queries, "fc1": up * width, "fc2": width}
    return {target: Count(split[target], hidden) for target in lora.targets} if lora.rank else {}


def language_layer(model: ModelConfig) -> Count:
    return layer_matrices(model) + _layer_vectors(model) + layer_updates(model)


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


def rank_trained_parameters(
    model: ModelConfig, vocab_size: int, layout: Layout, stage: int, frozen: Iterable[str] = ()
) -> int:
    """Those on a rank that have gradients; prefixes of parameters' names in `frozen` are passed over, as in `step_flops`.

    Under low-rank updates these alone are trained of the language model.
    """
    counts = rank_parameters(model, vocab_size, layout, stage)
    if model.lora.rank:
        layers = sum(layout.layers(model.language.num_layers)[stage])
        counts["language"] = (layer_updates(model) * layers).on_rank(layout.tensor)
    frozen = set(frozen)
    return sum(count for module, count in counts.items() if module not in frozen)
