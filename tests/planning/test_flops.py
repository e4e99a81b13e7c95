"""The count of operations equals what PyTorch counts while a plain re-implementation runs, matrix by matrix.

Causal attention: `flops` counts the n (n + 1) / 2 query-key pairs that a document of n has. So the re-implementation here
gives each query the keys up to its own, instead of masking a square of which half is thrown away.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import chain, combinations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from megatron_vlm.config.loading import load_config
from megatron_vlm.config.model import Activation, LanguageConfig, LoraConfig, ModelConfig, ProjectorConfig, VisionConfig
from megatron_vlm.planning.flops import (
    BatchShape,
    language_forward_flops,
    projector_forward_flops,
    step_flops,
    vision_forward_flops,
)

VOCABULARY = 40
LENGTHS = (5, 1, 6)
#: activations of the language models here, and whether they have a gate: written down, not asked of the configuration
GATED_ONES = {"swiglu": True, "geglu": True, "gelu": False}
MODULES = ("language", "vision", "projector")

MODEL = ModelConfig(
    language=LanguageConfig(num_layers=2, hidden_size=16, num_attention_heads=4, num_query_groups=2, ffn_hidden_size=24),
    vision=VisionConfig(
        kind="dinov2", register_tokens=2, image_size=16, patch_size=4, num_layers=3, skip_last_layers=1, hidden_size=12
    ),
    projector=ProjectorConfig(kind="mlp3", hidden_size=20, pixel_shuffle=2),
)


def linear(size: int, out: int) -> nn.Linear:
    return nn.Linear(size, out, bias=False)


class Feedforward(nn.Module):
    def __init__(self, hidden: int, width: int, gated: bool) -> None:
        super().__init__()
        self.gated, self.up, self.down = gated, linear(hidden, width * (1 + gated)), linear(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(x)
        if self.gated:
            gate, x = x.chunk(2, -1)
            return self.down(nn.functional.silu(gate) * x)
        return self.down(nn.functional.gelu(x))


class LanguageBlock(nn.Module):
    def __init__(self, c: LanguageConfig) -> None:
        super().__init__()
        self.heads, self.groups, self.size = c.num_attention_heads, c.query_groups, c.head_dim
        self.qkv = linear(c.hidden_size, (self.heads + 2 * self.groups) * self.size)
        self.out = linear(self.heads * self.size, c.hidden_size)
        self.mlp = Feedforward(c.hidden_size, c.ffn_width, GATED_ONES[c.activation])

    def forward(self, x: Tensor, lengths: tuple[int, ...]) -> Tensor:
        q, k, v = self.qkv(x).split([self.heads * self.size, self.groups * self.size, self.groups * self.size], -1)
        q = q.view(-1, self.heads, self.size).transpose(0, 1)
        k, v = (t.view(-1, self.groups, self.size).repeat_interleave(self.heads // self.groups, 1) for t in (k, v))
        k, v = k.transpose(0, 1), v.transpose(0, 1)
        rows, start = [], 0
        for n in lengths:
            for i in range(start, start + n):
                scores = q[:, i : i + 1] @ k[:, start : i + 1].transpose(1, 2)
                rows.append((scores.softmax(-1) @ v[:, start : i + 1]).reshape(1, -1))
            start += n
        x = x + self.out(torch.cat(rows))
        return x + self.mlp(x)


class Language(nn.Module):
    def __init__(self, c: LanguageConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, c.hidden_size)
        self.blocks = nn.ModuleList(LanguageBlock(c) for _ in range(c.num_layers))
        self.output = linear(c.hidden_size, VOCABULARY)

    def forward(self, rows: Tensor, lengths: tuple[int, ...]) -> Tensor:
        x = self.embedding(torch.zeros(sum(lengths), dtype=torch.long))
        x = torch.cat([rows, x[len(rows) :]])
        for block in self.blocks:
            x = block(x, lengths)
        return self.output(x)


class VisionBlock(nn.Module):
    def __init__(self, c: VisionConfig) -> None:
        super().__init__()
        self.heads = c.num_attention_heads
        self.qkv, self.out = linear(c.hidden_size, 3 * c.hidden_size), linear(c.hidden_size, c.hidden_size)
        self.mlp = Feedforward(c.hidden_size, c.ffn_width, c.activation == "geglu")

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, hidden = x.shape
        q, k, v = self.qkv(x).view(n, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = (q @ k.transpose(-1, -2)).softmax(-1) @ v
        x = x + self.out(mixed.transpose(1, 2).reshape(n, tokens, hidden))
        return x + self.mlp(x)


class Vision(nn.Module):
    def __init__(self, c: VisionConfig) -> None:
        super().__init__()
        self.prefix = nn.Parameter(torch.zeros(c.prefix_tokens, c.hidden_size))
        self.patches = linear(3 * c.patch_size**2, c.hidden_size)
        self.blocks = nn.ModuleList(VisionBlock(c) for _ in range(c.num_layers - c.skip_last_layers))

    def forward(self, pixels: Tensor) -> Tensor:
        x = torch.cat([self.prefix.expand(len(pixels), -1, -1), self.patches(pixels)], 1)
        for block in self.blocks:
            x = block(x)
        return x[:, len(self.prefix) :]


class Projector(nn.Sequential):
    def __init__(self, m: ModelConfig) -> None:
        size, out = m.vision.hidden_size * m.projector.pixel_shuffle**2, m.language.hidden_size
        width = m.projector.hidden_size or out
        sizes = {"linear": [size, out], "mlp2": [size, width, out], "mlp3": [size, width, width, out]}[m.projector.kind]
        layers = [layer for a, b in zip(sizes, sizes[1:], strict=False) for layer in (linear(a, b), nn.GELU())]
        super().__init__(*layers[:-1])


class Plain(nn.Module):
    def __init__(self, model: ModelConfig) -> None:
        super().__init__()
        self.model = model
        self.language, self.vision, self.projector = Language(model.language), Vision(model.vision), Projector(model)

    def forward(self, pictures: int, lengths: tuple[int, ...], grid: int, pool: int) -> Tensor:
        rows = torch.zeros(0, self.model.language.hidden_size)
        if pictures:
            side = grid // self.model.projector.pixel_shuffle
            features = self.vision(torch.zeros(pictures, grid * grid, 3 * self.model.vision.patch_size**2))
            rows = self.projector(features.reshape(pictures * side * side, -1))
            rows = rows.view(pictures, side // pool, pool, side // pool, pool, -1).mean((2, 4)).flatten(0, 2)
        return self.language(rows, lengths)


def counted(
    model: ModelConfig,
    pictures: int,
    frozen: tuple[str, ...] = (),
    backward: bool = True,
    grid: int | None = None,
    pool: int = 1,
) -> int:
    plain = Plain(model)
    for name in frozen:
        getattr(plain, name).requires_grad_(False)
    with FlopCounterMode(display=False) as counter:
        logits = plain(pictures, LENGTHS, grid or model.vision.grid, pool)
        if backward and logits.requires_grad:
            logits.sum().backward()
    return counter.get_total_flops()


MODELS = [
    MODEL,
    ModelConfig(
        language=LanguageConfig(num_layers=1, hidden_size=8, num_attention_heads=2, activation="gelu"),
        vision=VisionConfig(kind="clip", image_size=9, patch_size=4, num_layers=2, hidden_size=8, num_attention_heads=2),
        projector=ProjectorConfig(kind="linear"),
    ),
    ModelConfig(
        language=LanguageConfig(num_layers=1, hidden_size=8, num_attention_heads=2, ffn_hidden_size=16),
        vision=VisionConfig(kind="siglip", image_size=8, patch_size=4, num_layers=1, hidden_size=8, ffn_hidden_size=12),
        projector=ProjectorConfig(kind="mlp2"),
    ),
    ModelConfig(
        language=LanguageConfig(num_layers=1, hidden_size=8, num_attention_heads=2, ffn_hidden_size=16, activation="geglu"),
        vision=VisionConfig(image_size=8, patch_size=4, num_layers=1, hidden_size=8, ffn_hidden_size=12, activation="geglu"),
        projector=ProjectorConfig(kind="mlp2", hidden_size=4),
    ),
]
MODEL_NAMES = ["swiglu", "gelu", "swiglu, one layer", "geglu"]


@pytest.mark.parametrize("model", MODELS, ids=MODEL_NAMES)
@pytest.mark.parametrize("pictures", [0, 1, 2])
def test_forward(model: ModelConfig, pictures: int) -> None:
    expected = counted(model, pictures, backward=False)
    language = language_forward_flops(model, VOCABULARY, sum(LENGTHS), LENGTHS)
    assert language + vision_forward_flops(model, pictures) + projector_forward_flops(model, pictures) == expected
    assert (vision_forward_flops(model, pictures) > 0) == (pictures > 0)


@pytest.mark.parametrize("model", MODELS, ids=MODEL_NAMES)
@pytest.mark.parametrize("frozen", [*chain.from_iterable(combinations(MODULES, n) for n in range(4))], ids="+".join)
def test_forward_and_backward_with_frozen_modules(model: ModelConfig, frozen: tuple[str, ...]) -> None:
    for pictures in (0, 2):
        batch = BatchShape(sum(LENGTHS), LENGTHS, pictures)
        assert step_flops(model, VOCABULARY, batch, frozen) == counted(model, pictures, frozen)


@pytest.mark.parametrize(("image_size", "grid", "pool"), [(8, 2, 1), (16, 4, 2), (24, 6, 3), (27, 6, 1)])
@pytest.mark.parametrize("frozen", [(), ("vision",), ("language", "projector")], ids="+".join)
def test_other_sizes_of_pictures_and_means_of_their_rows(
    image_size: int, grid: int, pool: int, frozen: tuple[str, ...]
) -> None:
    batch = BatchShape(sum(LENGTHS), LENGTHS, 1, image_size)
    expected = counted(MODEL, 1, frozen, grid=grid, pool=pool)
    assert step_flops(MODEL, VOCABULARY, batch, frozen) == expected
    forward = vision_forward_flops(MODEL, 1, image_size) + projector_forward_flops(MODEL, 1, image_size)
    assert forward == counted(MODEL, 1, backward=False, grid=grid, pool=pool) - language_forward_flops(
        MODEL, VOCABULARY, sum(LENGTHS), LENGTHS
    )


def test_pictures_of_shapes_of_their_own_cost_what_each_costs() -> None:
    """Squares of two sizes in one batch, told by their patches, against a batch of each."""
    counts = {16: 3, 32: 2}  # side in pixels -> pictures
    patches = {side: (side // MODEL.vision.patch_size) ** 2 for side in counts}
    told = (sum(counts[s] * n for s, n in patches.items()), sum(counts[s] * n * n for s, n in patches.items()))
    mixed = step_flops(MODEL, VOCABULARY, BatchShape(0, (), 5, None, told))
    assert mixed == sum(step_flops(MODEL, VOCABULARY, BatchShape(0, (), n, side)) for side, n in counts.items())


@pytest.mark.parametrize("activation", ["swiglu", "geglu", "gelu"])
def test_low_rank_updates_of_a_gated_model(activation: Activation) -> None:
    """Beside fc1 `[8, up * 16]` of one layer: A is `[rank, 8]` and B `[up * 16, rank]`, each a product of 12 positions."""
    language = LanguageConfig(num_layers=1, hidden_size=8, num_attention_heads=2, ffn_hidden_size=16, activation=activation)
    plain, up = ModelConfig(language=language), 2 if GATED_ONES[activation] else 1
    updated = replace(plain, lora=LoraConfig(rank=3, targets=("fc1",)))
    text = BatchShape(12, LENGTHS, 0)
    # the frozen weights of qkv have no gradient and nothing to learn below them; of the others inputs' gradients are made
    qkv, others = 2 * 12 * 8 * 24, 2 * 12 * (8 * 8 + 8 * up * 16 + 16 * 8 + 8 * VOCABULARY)
    pairs = sum(n * (n + 1) // 2 for n in LENGTHS)
    base = qkv + 2 * others + 3 * 4 * pairs * 8
    low = 3 * 2 * 12 * 3 * (8 + up * 16)
    assert step_flops(updated, VOCABULARY, text) == base + low


def test_documents_cost_less_than_the_row_they_share() -> None:
    apart = language_forward_flops(MODEL, VOCABULARY, 12, (4, 4, 4))
    together = language_forward_flops(MODEL, VOCABULARY, 12, (12,))
    heads = MODEL.language.num_attention_heads * MODEL.language.head_dim
    assert together - apart == MODEL.language.num_layers * 4 * heads * (12 * 13 // 2 - 3 * 4 * 5 // 2)


def test_a_large_model_is_near_six_operations_a_parameter_and_token() -> None:
    """The usual estimate, 6 N for each token, leaves out attention and counts the output layer's matrix."""
    model = load_config(preset="vlm_1b").model
    hidden, width, layers = 2048, 5632, 24
    parameters = layers * (4 * hidden * hidden + 3 * hidden * width) + hidden * 50432
    batch = BatchShape(2048 * 8, (2048,) * 8, 0)
    ratio = step_flops(model, 50432, batch) / (6 * parameters * batch.positions)
    assert 1.0 < ratio < 1.1
