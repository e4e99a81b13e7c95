"""What a forward pass keeps for its backward pass, tensor by tensor, as values a position.

Three sets of kernels keep unlike things. `fused`: Transformer Engine's layers and flash attention on a GPU, which keep no
scores. `unfused`: the layer of Korthikanti et al. 2022 (arXiv 2205.05198), section 4.1, with scores and dropout masks; it is
here so that the sums can be held against the paper's. `host`: PyTorch's own operators under `models/host_layers.py`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from megatron_vlm.config.model import ModelConfig
from megatron_vlm.planning.layout import Recompute
from megatron_vlm.planning.parameters import low_rank_sides

Kernels = Literal["fused", "unfused", "host"]

#: who shares a tensor: tensor-parallel ranks always, only under sequence parallelism, or nobody
Split = Literal["tensor", "sequence", "whole"]


@dataclass(frozen=True, slots=True)
class Kept:
    """A tensor that is kept: `width` values a position of `bytes` each; a position is one of a context-parallel rank's own,
    whatever part of the row the tensor is of. `spared`: the modules of which one is enough for it
    not to be kept, where selective recomputation computes that again: core_attn, layernorm, mlp."""

    name: str
    width: float
    bytes: float
    split: Split
    spared: tuple[str, ...] = ()

    def on_rank(self, tensor: int, sequence_parallel: bool) -> float:
        """Bytes a position of the whole sequence (of a context-parallel rank's part of it) on one rank."""
        shared = self.split == "tensor" or (self.split == "sequence" and sequence_parallel)
        return self.width * self.bytes / (tensor if shared else 1)


def value_bytes(precision: str) -> int:
    return 4 if precision == "fp32" else 2


def bytes_a_position(kept: Iterable[Kept], tensor: int, sequence_parallel: bool) -> float:
    return sum(item.on_rank(tensor, sequence_parallel) for item in kept)


def language_layer_keeps(
    model: ModelConfig,
    kernels: Kernels,
    precision: str,
    recompute: Recompute,
    sequence_length: int,
    modules: Iterable[str] = ("core_attn",),
    keys: float = 1.0,
) -> list[Kept]:
    """Of one language layer. `sequence_length` matters where scores are kept: keys that a position has, padding and all.
    `modules` are those that selective recomputation computes again. `keys`: positions whose keys and values are kept, for
    each of the rank's own (`Layout.kept_keys`), unless attention is computed again and gathers them again.
    """
    size = value_bytes(precision)
    hidden = model.language.hidden_size
    if recompute == "full":
        return [Kept("input of the layer", hidden, size, "sequence")]
    again = set(modules) if recompute == "selective" else set()
    of = 1.0 if "core_attn" in again else keys
    make = {"fused": _fused, "unfused": _unfused, "host": _host}[kernels]
    everything = make(model, size, precision, sequence_length, of) + _updates(model, size)
    unread = _read_by_frozen_alone(model)
    return [item for item in everything if again.isdisjoint(item.spared) and item.name not in unread]


def _updates(model: ModelConfig, size: int) -> list[Kept]:
    """Of low-rank updates: what enters B. A reads what its matrix reads. Of the matrices that are split by rows of theirs
    (qkv, fc1) every rank has it of all positions."""
    kept = []
    for target in low_rank_sides(model):
        split: Split = "whole" if target in ("qkv", "fc1") else "sequence"
        kept.append(Kept(f"input of B of {target}", model.lora.rank, size, split, ("mlp",) if "fc" in target else ()))
    return kept


def _read_by_frozen_alone(model: ModelConfig) -> set[str]:
    """What only gradients of frozen weights would be made of: inputs of matrices without a low-rank update where others have
    one, and what the norms' gains multiply."""
    if not model.lora.rank:
        return set()
    inputs = {"qkv": "qkv", "proj": "the projection", "fc1": "fc1", "fc2": "fc2"}
    unread = {f"input of {name}" for target, name in inputs.items() if target not in model.lora.targets}
    return unread | {"inside of the first norm", "inside of the second norm"}


def _fused(model: ModelConfig, size: int, precision: str, sequence_length: int, of: float) -> list[Kept]:
    """`of`: positions whose keys and values are kept, for each of the rank's own; in the others too."""
    language = model.language
    hidden, head, ffn = language.hidden_size, language.head_dim, language.ffn_width
    queries, keys = language.num_attention_heads * head, language.query_groups * head
    up = 2 if language.gated else 1
    into = 1 if precision == "fp8" else size  # what enters a matrix product is kept as it was multiplied
    kept = [
        Kept("input of the first norm", hidden, size, "sequence"),
        Kept("input of qkv", hidden, into, "sequence"),
        Kept("queries, keys, values", queries + 2 * keys * of, size, "tensor"),
        Kept("output of the attention", queries, size, "tensor"),
        Kept("sums of exponentials", language.num_attention_heads, 4, "tensor", ("core_attn",)),
        Kept("input of the second norm", hidden, size, "sequence"),
        Kept("input of fc1", hidden, into, "sequence", ("mlp",)),  # the norm before it is a part of the matrix
        Kept("output of fc1", up * ffn, size, "tensor", ("mlp",)),
        Kept("input of fc2", ffn, into, "tensor", ("mlp",)),
    ]
    if precision == "fp8":
        kept.append(Kept("input of the projection, in fp8", queries, 1, "tensor"))
    if language.qk_layernorm:
        kept.append(Kept("queries and keys before their norms", queries + keys, size, "tensor"))
    if language.dropout:
        kept += [Kept("dropout masks", 2 * hidden, 1, "sequence")]
    return kept


def _unfused(model: ModelConfig, size: int, precision: str, sequence_length: int, of: float) -> list[Kept]:
    """Section 4.1: 11 sbh + 5 a s^2 b of the attention, 19 sbh of the MLP, 4 sbh of the norms, in 16 bits."""
    language = model.language
    hidden, head, ffn = language.hidden_size, language.head_dim, language.ffn_width
    queries, keys = language.num_attention_heads * head, language.query_groups * head
    scores = language.num_attention_heads * sequence_length
    up = 2 if language.gated else 1
    return [
        Kept("inputs of the norms", 2 * hidden, size, "sequence"),
        Kept("input of qkv", hidden, size, "sequence", ("layernorm",)),
        Kept("queries and keys", queries + keys * of, size, "tensor"),
        Kept("softmax", scores, size, "tensor", ("core_attn",)),
        Kept("mask of the dropout of the scores", scores, 1, "tensor", ("core_attn",)),
        Kept("scores after dropout", scores, size, "tensor", ("core_attn",)),
        Kept("values", keys * of, size, "tensor"),
        Kept("input of the projection", queries, size, "tensor"),
        Kept("mask of the attention's dropout", hidden, 1, "sequence"),
        Kept("input of fc1", hidden, size, "sequence", ("layernorm",)),
        Kept("output of fc1", up * ffn, size, "tensor", ("mlp",)),
        Kept("input of fc2", ffn, size, "tensor", ("mlp",)),
        Kept("mask of the MLP's dropout", hidden, 1, "sequence"),
    ]


def _host(model: ModelConfig, size: int, precision: str, sequence_length: int, of: float) -> list[Kept]:
    language = model.language
    hidden, head, ffn = language.hidden_size, language.head_dim, language.ffn_width
    queries, keys = language.num_attention_heads * head, language.query_groups * head
    divided = hidden if language.normalization == "rmsnorm" else 0  # PyTorch's RMSNorm keeps its input, and that divided
    norm = 2 if divided and not model.lora.rank else 1
    kept = [
        Kept("input of the first norm", hidden, size, "sequence"),
        Kept("inside of the first norm", divided, size, "sequence", ("layernorm",)),
        Kept("input of qkv", hidden, size, "sequence", ("layernorm",)),
        Kept("output of qkv", queries + 2 * keys, size, "tensor"),
        Kept("queries and keys with their places, by documents", queries + keys * of, size, "tensor"),
        Kept("values by documents, and the output", queries + keys * of, size, "tensor", ("core_attn",)),
        Kept("sums of exponentials", language.num_attention_heads, 4, "tensor", ("core_attn",)),
        Kept("input of the projection", queries, size, "tensor"),
        Kept("sines and cosines", 4 * head, size, "whole"),
        Kept("input of the second norm", hidden, size, "sequence"),
        Kept("inside of the second norm", divided, size, "sequence", ("layernorm",)),
        Kept("input of fc1", hidden, size, "sequence", ("layernorm",)),
        Kept("output of fc1", ffn, size, "tensor", ("mlp",)),
        Kept("input of fc2", ffn, size, "tensor", ("mlp",)),
    ]
    if language.gated:
        kept.append(Kept("the gate, its activation and the other half", 3 * ffn, size, "tensor", ("mlp",)))
    if language.qk_layernorm:
        kept.append(Kept("the norms of queries and keys", norm * queries + (norm - 1) * keys, size, "tensor"))
    return kept


def head_keeps(model: ModelConfig, vocab_size: int, kernels: Kernels, precision: str, z_loss: bool) -> list[Kept]:
    """Of the final norm, the output layer and the loss. megatron-core's cross-entropy keeps the softmax in fp32; a z-loss
    keeps exponentials of its own in fp32."""
    size, hidden, learns = value_bytes(precision), model.language.hidden_size, not model.lora.rank
    norm = 2 if kernels == "host" and model.language.normalization == "rmsnorm" and learns else 1
    kept = [
        Kept("the final norm", norm * hidden, size, "sequence"),
        Kept("input of the output layer", hidden * learns, size, "sequence"),
        Kept("softmax", vocab_size, 4, "tensor"),
    ]
    if z_loss:
        kept.append(Kept("exponentials of the z-loss", vocab_size, 4, "tensor"))
    return kept


def encoder_layer_keeps(model: ModelConfig, kernels: Kernels, precision: str) -> list[Kept]:
    """Of one layer of a trained encoder, a token. Encoders are not sequence-parallel; a frozen one keeps nothing."""
    vision, size = model.vision, value_bytes(precision)
    hidden, ffn = vision.hidden_size, vision.ffn_width
    up = 2 if vision.gated else 1
    return [
        Kept("inputs of the norms", 2 * hidden, size, "whole"),
        Kept("inputs of qkv and fc1", 2 * hidden, size, "whole"),
        Kept("queries, keys, values", 3 * hidden, size, "tensor"),
        Kept("output of the attention", hidden, size, "tensor"),
        Kept("sums of exponentials", vision.num_attention_heads, 4, "tensor"),
        Kept("output of fc1", up * ffn + (2 * ffn if up == 2 and kernels == "host" else 0), size, "tensor"),
        Kept("input of fc2", ffn, size, "tensor"),
    ]


def encoder_bytes(
    model: ModelConfig,
    kernels: Kernels,
    precision: str,
    split: int,
    image_size: int,
    vision_learns: bool,
    learns: bool,
    recompute: bool = False,
    features: bool = False,
) -> float:
    """What one picture keeps on a rank that encodes it: encoder (if it learns) and projector (if anything learns there).
    `recompute`: of the encoder's layers only their inputs. `features` are read: in bf16 the projector keeps them as they
    lie in the batch."""
    projector, size = model.projector, value_bytes(precision)
    patches = (image_size // model.vision.patch_size) ** 2
    kept = 0.0
    for vision in model.encoders if vision_learns else ():
        tokens, alone = patches + vision.prefix_tokens, replace(model, vision=vision, vision_second=None)
        layers = vision.num_layers - vision.skip_last_layers
        inputs = [Kept("input of the layer", vision.hidden_size, size, "whole")]
        keeps = inputs if recompute else encoder_layer_keeps(alone, kernels, precision)
        kept += layers * tokens * bytes_a_position(keeps, split, False)
        kept += tokens * vision.hidden_size * size * vision.final_norm + patches * 3 * vision.patch_size**2 * size
    if learns:
        rows = patches // projector.pixel_shuffle**2
        width = projector.hidden_size or model.language.hidden_size
        hidden = {"linear": 0, "mlp2": 2 * width / split, "mlp3": 2 * width + 2 * width / split}[projector.kind]
        kept += 0 if features and size == 2 else patches * model.vision_width * size
        kept += rows * hidden * size
    return kept
