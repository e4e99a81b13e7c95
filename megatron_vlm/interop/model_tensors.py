"""Names and shapes of a model's tensors in a checkpoint, told from its configuration without building it.

A test holds them against the model's own sharded state for every variant.
"""

from __future__ import annotations

from collections.abc import Iterator

from megatron_vlm.config.model import LanguageConfig, ModelConfig, ProjectorConfig, VisionConfig
from megatron_vlm.interop.layouts import Shape

LANGUAGE = "language_model."
VISION = "vision."
#: of another encoder, which is a part of the first
SECOND = "vision.second."
PROJECTOR = "projector."
WORDS = "language_model.embedding.word_embeddings.weight"
OUTPUT = "language_model.output_layer.weight"
POSITIONS = "vision.position_embeddings.weight"
SECOND_POSITIONS = "vision.second.position_embeddings.weight"

#: modules whose first values are one and not drawn or zero
_ONES = ("layer_norm_weight", "layernorm.weight", "pre_norm.weight", "bda.norm.weight", ".gamma")


def layer_norms(language: LanguageConfig) -> tuple[str, str]:
    """Names of a layer's norms up to weight or bias: of attention, of the MLP."""
    if language.norm_after:
        return "self_attn_bda.norm.", "mlp_bda.norm."
    return "self_attention.linear_qkv.layer_norm_", "mlp.linear_fc1.layer_norm_"


def language_tensors(language: LanguageConfig, rows: int) -> Iterator[tuple[str, Shape]]:
    """`rows`: those of the padded vocabulary."""
    hidden, head, width = language.hidden_size, language.head_dim, language.ffn_width
    queries = language.num_attention_heads * head
    mixed, up = queries + 2 * language.query_groups * head, (2 if language.gated else 1) * width
    norm_bias = language.normalization == "layernorm"
    linear_bias = language.add_bias_linear
    yield WORDS, (rows, hidden)
    for number in range(language.num_layers):
        layer = f"language_model.decoder.layers.{number}."
        for norm in layer_norms(language):
            yield f"{layer}{norm}weight", (hidden,)
            if norm_bias:
                yield f"{layer}{norm}bias", (hidden,)
        yield f"{layer}self_attention.linear_qkv.weight", (mixed, hidden)
        yield f"{layer}self_attention.linear_proj.weight", (hidden, queries)
        yield f"{layer}mlp.linear_fc1.weight", (up, hidden)
        yield f"{layer}mlp.linear_fc2.weight", (hidden, width)
        if language.add_qkv_bias or linear_bias:
            yield f"{layer}self_attention.linear_qkv.bias", (mixed,)
        if linear_bias:
            yield f"{layer}self_attention.linear_proj.bias", (hidden,)
            yield f"{layer}mlp.linear_fc1.bias", (up,)
            yield f"{layer}mlp.linear_fc2.bias", (hidden,)
        if language.qk_layernorm:
            for name, heads in (("q_layernorm", language.num_attention_heads), ("k_layernorm", language.query_groups)):
                size = heads * head if language.qk_layernorm_full_width else head
                yield f"{layer}self_attention.{name}.weight", (size,)
                if norm_bias:
                    yield f"{layer}self_attention.{name}.bias", (size,)
    yield "language_model.decoder.final_layernorm.weight", (hidden,)
    if norm_bias:
        yield "language_model.decoder.final_layernorm.bias", (hidden,)
    if language.untie_embeddings:
        yield OUTPUT, (rows, hidden)


def vision_tensors(vision: VisionConfig, root: str = VISION) -> Iterator[tuple[str, Shape]]:
    """`root`: of the encoder's names, "vision." or "vision.second."."""
    for name, shape in _vision_tensors(vision):
        yield root + name.removeprefix(VISION), shape


def _vision_tensors(vision: VisionConfig) -> Iterator[tuple[str, Shape]]:
    hidden, width = vision.hidden_size, vision.ffn_width
    yield "vision.patch_embedding.weight", (hidden, 3 * vision.patch_size**2)
    if vision.kind != "clip":
        yield "vision.patch_embedding.bias", (hidden,)
    yield POSITIONS, (vision.patches + (vision.kind != "siglip"), hidden)
    if vision.kind != "siglip":
        yield "vision.class_token", (hidden,)
    if vision.register_tokens:
        yield "vision.register_tokens", (vision.register_tokens, hidden)
    norms = ["vision.pre_norm"] if vision.kind == "clip" else []
    up = 2 * width if vision.gated else width
    for number in range(vision.num_layers - vision.skip_last_layers):
        layer = f"vision.decoder.layers.{number}."
        norms += [layer + "input_layernorm", layer + "pre_mlp_layernorm"]
        for name, out, into in (
            ("self_attention.linear_qkv", 3 * hidden, hidden),
            ("self_attention.linear_proj", hidden, hidden),
            ("mlp.linear_fc1", up, hidden),
            ("mlp.linear_fc2", hidden, width),
        ):
            yield f"{layer}{name}.weight", (out, into)
            yield f"{layer}{name}.bias", (out,)
        if vision.kind == "dinov2":
            yield f"{layer}self_attn_bda.gamma", (hidden,)
            yield f"{layer}mlp_bda.gamma", (hidden,)
    if vision.final_norm:
        norms.append("vision.decoder.final_layernorm")
    for norm in norms:
        yield f"{norm}.weight", (hidden,)
        yield f"{norm}.bias", (hidden,)


def projector_tensors(projector: ProjectorConfig, vision_size: int, language_size: int) -> Iterator[tuple[str, Shape]]:
    width, into = projector.hidden_size or language_size, vision_size * projector.pixel_shuffle**2
    if projector.kind == "linear":
        layers = [("linear_fc1", language_size, into)]
    else:
        layers = [("linear_fc1", width, into), ("linear_fc2", language_size, width)]
        if projector.kind == "mlp3":
            layers.insert(1, ("linear_middle", width, width))
    for name, out, size in layers:
        yield f"projector.{name}.weight", (out, size)
        yield f"projector.{name}.bias", (out,)


def model_tensors(model: ModelConfig, rows: int) -> dict[str, Shape]:
    """Every tensor of the model by its global name; `rows` are those of the padded vocabulary."""
    return dict(
        [
            *language_tensors(model.language, rows),
            *vision_tensors(model.vision),
            *(vision_tensors(model.vision_second, SECOND) if model.vision_second is not None else ()),
            *projector_tensors(model.projector, model.vision_width, model.language.hidden_size),
        ]
    )


def first_constant(name: str, zero_centered: bool) -> float | None:
    """The value that a vector begins with in a new model; None for what is drawn."""
    if "class_token" in name:
        return None
    if name.endswith(_ONES):
        return 0.0 if zero_centered and name.startswith(LANGUAGE) else 1.0
    return 0.0 if name.endswith(("bias", "layer_norm_bias")) else None
