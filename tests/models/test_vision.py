"""The encoder: every patch sees every patch of its own picture, and the families are those they are named after."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from megatron_vlm.config.model import ModelConfig, VisionConfig
from megatron_vlm.config.parallel import ParallelConfig
from megatron_vlm.models.transformer_configs import vision_config
from megatron_vlm.models.vision import VisionEncoder
from megatron_vlm.ops.patchify import patchify_squares
from megatron_vlm.parallel import topology
from tests.distributed.ranks import run_ranks
from tests.models import families

SHAPE: dict[str, Any] = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_layers": 3,
    "ffn_hidden_size": 64,
}
#: as the original checkpoints of each family are read
FAMILIES: dict[str, dict[str, Any]] = {
    "siglip": {"kind": "siglip", "activation": "gelu_tanh", "norm_epsilon": 1e-6},
    "clip": {
        "kind": "clip",
        "activation": "quick_gelu",
        "norm_epsilon": 1e-5,
        "skip_last_layers": 1,
        "final_norm": False,
        "pixel_mean": (0.48, 0.46, 0.41),
        "pixel_std": (0.27, 0.26, 0.28),
    },
    "dinov2": {"kind": "dinov2", "activation": "gelu", "norm_epsilon": 1e-6, "register_tokens": 2},
    "dinov2_plain": {"kind": "dinov2", "activation": "gelu", "norm_epsilon": 1e-6},
}


def _encoder(name: str, parallel: ParallelConfig | None = None, group: int = 1) -> VisionEncoder:
    parallel = parallel or ParallelConfig()
    topology.initialize(parallel, seed=1)
    vision = VisionConfig(**SHAPE, **FAMILIES[name])
    encoder = VisionEncoder(vision, vision_config(ModelConfig(vision=vision), parallel, "cpu"), "host", group).eval()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():  # first weights are the business of models.initialization
        for parameter in encoder.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return encoder


def _pictures(count: int, size: int = 32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(4)
    return torch.randint(0, 256, (count, size, size, 3), generator=generator, dtype=torch.uint8)


@torch.no_grad()
def _against_the_original(name: str, sizes: tuple[int, ...]) -> list[tuple[list[str], float, float]]:
    found = []
    for size in sizes:
        encoder, pictures = _encoder(name), _pictures(3, size)
        mean, std = (torch.tensor(v) for v in (encoder.vision.pixel_mean, encoder.vision.pixel_std))
        scaled = ((pictures / 255.0 - mean) / std).permute(0, 3, 1, 2)
        weights, expected = getattr(families, name)(scaled)
        own = dict(encoder.named_parameters())
        for parameter, value in ((own.pop(key), value) for key, value in weights.items()):
            parameter.copy_(value)
        features = encoder(pictures)
        assert features.shape == (3, (size // 8) ** 2, 32)
        found.append((list(own), float((features - expected).abs().max()), float(expected.abs().max())))
    return found


@pytest.mark.parametrize("name", FAMILIES)
def test_features_are_those_of_the_original(name: str) -> None:
    """The encoder's own size is 32; at others the original interpolates its positions."""
    for forgotten, difference, largest in run_ranks(1, _against_the_original, name, (32, 16, 24, 56, 64))[0]:
        assert forgotten == []
        assert difference < 2e-6 * largest


#: (height, width) of pictures, in any order: the encoder's own, wider, taller, smaller, the first again
SIZES = ((32, 32), (16, 48), (56, 24), (8, 8), (32, 32))


@torch.no_grad()
def _packed_against_the_original(name: str) -> list[tuple[float, float]]:
    encoder = _encoder(name)
    mean, std = (torch.tensor(v) for v in (encoder.vision.pixel_mean, encoder.vision.pixel_std))
    generator = torch.Generator().manual_seed(5)
    pictures = [torch.randint(0, 256, (*size, 3), generator=generator, dtype=torch.uint8) for size in SIZES]
    originals = [getattr(families, name)(((p / 255.0 - mean) / std).permute(2, 0, 1).unsqueeze(0)) for p in pictures]
    own = dict(encoder.named_parameters())
    for key, value in originals[0][0].items():
        own[key].copy_(value)
    features = encoder(torch.cat([p.reshape(-1) for p in pictures]), SIZES)[0]
    parts = features.split([(height // 8) * (width // 8) for height, width in SIZES])
    expected = [theirs[0] for _, theirs in originals]
    return [(float((a - b).abs().max()), float(b.abs().max())) for a, b in zip(parts, expected, strict=True)]


@pytest.mark.parametrize("name", FAMILIES)
def test_packed_pictures_of_any_shape_are_those_of_the_original_alone(name: str) -> None:
    for difference, largest in run_ranks(1, _packed_against_the_original, name)[0]:
        assert difference < 2e-6 * largest


@torch.no_grad()
def _what_sees_what(name: str) -> tuple[bool, bool, bool]:
    encoder, pictures = _encoder(name), _pictures(2)
    before = encoder(pictures)
    changed = pictures.clone()
    changed[0, 24:, 24:] ^= 0x80  # the last patch of the first picture
    after = encoder(changed)
    one = encoder(pictures[1:])
    return (
        bool((before[0] != after[0]).any(dim=1).all()),
        bool((before[1] == after[1]).all()),
        bool(torch.allclose(before[1], one[0], rtol=0, atol=2e-6)),
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_every_patch_sees_the_last_one_and_no_other_picture(name: str) -> None:
    sees_all, alone, as_alone = run_ranks(1, _what_sees_what, name)[0]
    assert sees_all
    assert alone
    assert as_alone


def test_patches_come_in_reading_order() -> None:
    """The picture of one bright patch moves the patch embedding of that place alone."""
    picture = torch.zeros(1, 32, 32, 3, dtype=torch.uint8)
    picture[0, 8:16, 16:24] = 255  # second row, third column
    rows, _ = patchify_squares(picture, 8, [0.0] * 3, [1.0] * 3, torch.float32)
    assert rows[0].any(dim=1).nonzero().flatten().tolist() == [6]


@torch.no_grad()
def _grouped(name: str, size: int) -> tuple[float, float, float]:
    pictures, blocks = _pictures(2, size), size // 16
    plain, grouped = _encoder(name)(pictures), _encoder(name, group=2)(pictures)
    in_blocks = plain.view(2, blocks, 2, blocks, 2, 32).transpose(2, 3).reshape(2, 4 * blocks * blocks, 32)
    return float((grouped - in_blocks).abs().max()), float((plain - in_blocks).abs().max()), float(plain.abs().max())


@pytest.mark.parametrize(("name", "size"), [*((name, 32) for name in FAMILIES), ("siglip", 48), ("dinov2", 48)])
def test_patches_in_blocks_have_the_features_that_they_have_in_reading_order(name: str, size: int) -> None:
    difference, moved, largest = run_ranks(1, _grouped, name, size)[0]
    assert difference < 2e-6 * largest
    assert moved > 0.1 * largest


def _refusal(shape: tuple[int, int], group: int) -> str:
    try:
        _encoder("siglip", group=group)(torch.zeros(1, *shape, 3, dtype=torch.uint8))
    except ValueError as refusal:
        return str(refusal)
    return "taken"


@pytest.mark.parametrize(
    ("shape", "group", "reason"),
    [
        ((32, 24), 1, "32 x 24 pixels, and the encoder takes squares"),
        ((7, 7), 1, "0 x 0 patches of 8 pixels"),
        ((40, 40), 2, "5 x 5 patches of 8 pixels, which is not a multiple of pixel_shuffle 2"),
    ],
)
def test_pictures_that_do_not_fit_are_refused(shape: tuple[int, int], group: int, reason: str) -> None:
    assert reason in run_ranks(1, _refusal, shape, group)[0]
