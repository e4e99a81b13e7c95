"""Floating-point operations of the model, counted exactly from its shapes and the documents of a batch.

A product of `[m, k]` and `[k, n]` is 2*m*k*n. Attention is counted as what a causal document needs: half of its square,
diagonal included. Backward, a matrix costs its forward once for its own gradient and once for its input's, each only
where it is needed: frozen weights have no gradient, and pictures and whatever has nothing to learn below it get none.
Recomputation is not counted (model FLOPs, not hardware FLOPs), nor is what no picture pays for by itself: the positions of
another picture size are interpolated once a call. Averaging rows after the projector multiplies no matrices.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from megatron_vlm.config.model import LanguageConfig, ModelConfig
from megatron_vlm.planning.parameters import low_rank_sides


@dataclass(frozen=True)
class BatchShape:
    """What a step's cost depends on: positions (padding included), documents' lengths, pictures and their size in pixels
    (None: the encoder's own). `patches` are those of pictures of shapes of their own: their number in all pictures, and the
    sum of the squares of each picture's. `encoded`: their features are read, and the encoder has nothing to do."""

    positions: int
    document_lengths: tuple[int, ...]
    pictures: int
    image_size: int | None = None
    patches: tuple[int, int] | None = None
    encoded: bool = False


@dataclass(frozen=True)
class Forward:
    """Forward operations of a module, by what their backward pass depends on."""

    first: int  # matrices that the module's input enters
    matrices: int  # all others that have weights
    attention: int  # products of activations with activations

    @property
    def total(self) -> int:
        return self.first + self.matrices + self.attention

    def frozen_backward(self, below_learns: bool) -> int:
        """Forward, and the gradients of what goes through a frozen module in which something else learns."""
        return self.first * (1 + below_learns) + self.matrices * 2 + self.attention * 3

    def with_backward(self, learns: bool, below_learns: bool) -> int:
        if not (learns or below_learns):
            return self.total
        return (
            self.first * (1 + learns + below_learns)
            + self.matrices * (2 + learns)  # their inputs need a gradient: for what is below, or for `first`
            + self.attention * 3
        )


def mlp_forward(language: LanguageConfig, positions: int) -> int:
    """The feed-forward matrices of one language layer."""
    return 2 * positions * language.hidden_size * language.ffn_width * (3 if language.gated else 2)


def language_forward(model: ModelConfig, vocab_size: int, positions: int, lengths: Iterable[int]) -> Forward:
    """Language blocks and the output layer; `model.language.num_layers` and `vocab_size` may be those of a part."""
    language = model.language
    hidden, heads, groups, head = (
        language.hidden_size,
        language.num_attention_heads,
        language.query_groups,
        language.head_dim,
    )
    qkv = 2 * positions * hidden * (heads + 2 * groups) * head
    out = 2 * positions * heads * head * hidden
    pairs = sum(n * (n + 1) // 2 for n in lengths)  # query-key pairs that a causal document has
    attention = 2 * 2 * pairs * heads * head  # scores, and the weighted sum of values
    mlp = mlp_forward(language, positions)
    output = 2 * positions * hidden * vocab_size
    # the embedding learns with the rest and costs no product, so that no matrix is the first that learns
    return Forward(0, language.num_layers * (qkv + out + mlp) + output, language.num_layers * attention)


def lora_forward(model: ModelConfig, positions: int, targets: Iterable[str] = ("qkv", "proj", "fc1", "fc2")) -> Forward:
    """Low-rank updates beside the language blocks' matrices: A and B of each of `targets` that has one."""
    language, lora, sides = model.language, model.lora, low_rank_sides(model)
    layer = 2 * positions * lora.rank * sum(sides[target].total for target in targets if target in sides)
    first = 2 * positions * lora.rank * language.hidden_size if "qkv" in sides and "qkv" in targets else 0
    return Forward(first, language.num_layers * layer - first, 0)


def _beside(model: ModelConfig, language: Forward, positions: int) -> Forward:
    """The frozen language model under low-rank updates: the first matrix of all is that whose input needs no gradient."""
    config = model.language
    qkv = 2 * positions * config.hidden_size * (config.num_attention_heads + 2 * config.query_groups) * config.head_dim
    return Forward(qkv, language.matrices - qkv, language.attention)


def size_of(model: ModelConfig, image_size: int | None) -> int:
    """Side of the pictures that every encoder sees, in pixels."""
    return image_size or model.vision.image_size


def vision_forward(
    model: ModelConfig, pictures: int, image_size: int | None, patches: tuple[int, int] | None = None
) -> Forward:
    """The encoder, for pictures of `image_size` pixels a side (None: its own), or of `patches` as in BatchShape."""
    if model.vision_second is not None:
        parts = [
            vision_forward(replace(model, vision=v, vision_second=None), pictures, size_of(model, image_size), patches)
            for v in model.encoders
        ]
        return Forward(*(sum(getattr(part, name) for part in parts) for name in ("first", "matrices", "attention")))
    vision = model.vision
    each = ((image_size or vision.image_size) // vision.patch_size) ** 2
    count, squares = patches or (pictures * each, pictures * each * each)
    prefix = vision.prefix_tokens
    tokens = count + pictures * prefix
    pairs = squares + 2 * prefix * count + pictures * prefix * prefix  # every patch sees every patch of its picture
    hidden, width = vision.hidden_size, vision.ffn_width
    up = 2 if vision.gated else 1
    layers = vision.num_layers - vision.skip_last_layers
    matrices = 2 * tokens * hidden * 4 * hidden + 2 * tokens * hidden * width * (up + 1)
    return Forward(2 * count * 3 * vision.patch_size**2 * hidden, layers * matrices, layers * 4 * pairs * hidden)


def projector_forward(
    model: ModelConfig, pictures: int, image_size: int | None, patches: tuple[int, int] | None = None
) -> Forward:
    """The projector; its rows are averaged afterwards only."""
    projector = model.projector
    size = model.vision_width * projector.pixel_shuffle**2
    out = model.language.hidden_size
    width = projector.hidden_size or out
    first, rest = {
        "linear": (size * out, 0),
        "mlp2": (size * width, width * out),
        "mlp3": (size * width, width**2 + width * out),
    }[projector.kind]
    # averaged only afterwards
    rows = pictures * model.image_tokens_at(image_size) if patches is None else patches[0] // projector.pixel_shuffle**2
    return Forward(2 * rows * first, 2 * rows * rest, 0)


def language_forward_flops(model: ModelConfig, vocab_size: int, positions: int, lengths: Iterable[int]) -> int:
    """Language blocks and the output layer, forward, packed documents."""
    return language_forward(model, vocab_size, positions, lengths).total


def vision_forward_flops(model: ModelConfig, pictures: int, image_size: int | None = None) -> int:
    """Patch embedding and layers of the encoder, forward, for pictures of `image_size` pixels a side (None: its own)."""
    return vision_forward(model, pictures, image_size).total


def projector_forward_flops(model: ModelConfig, pictures: int, image_size: int | None = None) -> int:
    """The projector's matrices, forward."""
    return projector_forward(model, pictures, image_size).total


def step_flops(model: ModelConfig, vocab_size: int, batch: BatchShape, frozen: Iterable[str] = ()) -> int:
    """Forward and backward of one step over `batch` (a global batch gives the whole step's).

    `frozen` names modules without gradient: a frozen module has no weight gradients, and a frozen encoder, below which
    nothing learns, no backward at all. Prefixes of parameters' names are passed over.
    """
    frozen = set(frozen)
    vision_learns, projector_learns = pictures_teach(batch.pictures, batch.encoded, frozen)
    language = language_forward(model, vocab_size, batch.positions, batch.document_lengths)
    below_learns = vision_learns or projector_learns
    if model.lora.rank:
        learns = "language" not in frozen
        base = _beside(model, language, batch.positions)
        done = base.frozen_backward(below_learns) if learns else base.with_backward(False, below_learns)
        done += lora_forward(model, batch.positions).with_backward(learns, below_learns)
    else:
        done = language.with_backward("language" not in frozen, below_learns)
    return (
        done
        + projector_forward(model, batch.pictures, batch.image_size, batch.patches).with_backward(
            projector_learns, vision_learns
        )
        + (0 if batch.encoded else _vision_done(model, batch, vision_learns))
    )


def pictures_teach(pictures: float, encoded: bool, frozen: Iterable[str]) -> tuple[bool, bool]:
    """Whether encoder and projector learn from so many pictures; the encoder not where its features are read (`encoded`),
    which it is frozen for, by whatever prefix."""
    frozen = set(frozen)
    return pictures > 0 and not encoded and "vision" not in frozen, pictures > 0 and "projector" not in frozen


def _vision_done(model: ModelConfig, batch: BatchShape, learns: bool) -> int:
    return vision_forward(model, batch.pictures, batch.image_size, batch.patches).with_backward(learns, False)
