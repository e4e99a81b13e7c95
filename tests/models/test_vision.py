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
def _against_the_original(name: str, size: int) -> tuple[list[str], float, float]:
    encoder, pictures = _encoder(name), _pictures(3, size)
    mean, std = (torch.tensor(v) for v in (encoder.vision.pixel_mean, encoder.vision.pixel_std))
    scaled = ((pictures / 255.0 - mean) / std).permute(0, 3, 1, 2)
    weights, expected = getattr(families, name)(scaled)
    own = dict(encoder.named_parameters())
    for parameter, value in ((own.pop(key), value) for key, value in weights.items()):
        parameter.copy_(value)
    features = encoder(pictures)
    assert features.shape == (3, (size // 8) ** 2, 32)
    return list(own), float((features - expected).abs().max()), float(expected.abs().max())


@pytest.mark.parametrize("size", [32, 48, 16])
@pytest.mark.parametrize("name", FAMILIES)
def test_features_are_those_of_the_original(name: str, size: int) -> None:
    """At the encoder's own resolution, and at others by interpolated positions."""
    forgotten, difference, largest = run_ranks(1, _against_the_original, name, size)[0]
    assert forgotten == []
    assert difference < 2e-6 * largest


@torch.no_grad()
def _by_blocks(name: str) -> float:
    pictures = _pictures(2, 48)
    plain, blocks = _encoder(name), _encoder(name, group=3)
    _, places = patchify_squares(pictures, 8, (0.5,) * 3, (0.5,) * 3, torch.float32, 3)
    order = places[:, 0] * 6 + places[:, 1]
    return float((plain(pictures)[:, order] - blocks(pictures)).abs().max())


@pytest.mark.parametrize("name", FAMILIES)
def test_blocks_of_another_resolution_have_the_positions_of_their_places(name: str) -> None:
    assert run_ranks(1, _by_blocks, name)[0] < 1e-5


def _learns_at_another_resolution(name: str) -> tuple[bool, str]:
    encoder = _encoder(name, group=2)
    encoder(_pictures(2, 48)).square().sum().backward()
    gradient = encoder.position_embeddings.weight.grad
    assert gradient is not None
    try:
        encoder(_pictures(1, 24))
    except ValueError as error:
        return bool((gradient.abs().sum(dim=1) > 0).all()), str(error)
    return False, ""


@pytest.mark.parametrize("name", FAMILIES)
def test_positions_learn_through_the_interpolation(name: str) -> None:
    learns, refused = run_ranks(1, _learns_at_another_resolution, name)[0]
    assert learns
    assert refused == "picture 0: its 3 x 3 patches do not divide into groups of 2 x 2"


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
def _grouped(name: str) -> tuple[float, float, float]:
    pictures = _pictures(2)
    plain, grouped = _encoder(name)(pictures), _encoder(name, group=2)(pictures)
    in_blocks = plain.view(2, 2, 2, 2, 2, 32).transpose(2, 3).reshape(2, 16, 32)
    return float((grouped - in_blocks).abs().max()), float((plain - in_blocks).abs().max()), float(plain.abs().max())


@pytest.mark.parametrize("name", FAMILIES)
def test_patches_in_blocks_have_the_features_that_they_have_in_reading_order(name: str) -> None:
    difference, moved, size = run_ranks(1, _grouped, name)[0]
    assert difference < 2e-6 * size
    assert moved > 0.1 * size
