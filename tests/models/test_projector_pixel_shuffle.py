"""Pixel-shuffle folds neighbours into one row: nothing is lost, and what shares a row is a square of the picture."""

from __future__ import annotations

import pytest
import torch

from megatron_vlm.config.model import ModelConfig, ProjectorConfig, VisionConfig
from megatron_vlm.models.projector import pixel_shuffle
from megatron_vlm.ops.patchify import patchify_squares


def patches_of_numbers(grid: int, factor: int) -> torch.Tensor:
    """The row and column of each patch of a picture, `[1, grid * grid, 2]`, in the order in which an encoder gives them."""
    pixels = torch.zeros(1, grid, grid, 3, dtype=torch.uint8)
    _, coordinates = patchify_squares(pixels, 1, [0.0] * 3, [1.0] * 3, torch.float32, group=factor)
    return coordinates.unsqueeze(0)


@pytest.mark.parametrize(("grid", "factor"), [(4, 1), (4, 2), (6, 2), (6, 3), (27, 3), (27, 9)])
def test_rows_are_squares_in_reading_order(grid: int, factor: int) -> None:
    small = grid // factor
    folded = pixel_shuffle(patches_of_numbers(grid, factor), factor).reshape(small, small, factor * factor, 2)
    for row in range(small):
        for column in range(small):
            square = [[row * factor + r, column * factor + c] for r in range(factor) for c in range(factor)]
            assert folded[row, column].tolist() == square


def test_it_copies_nothing_and_keeps_the_features_of_a_patch_together() -> None:
    features = torch.arange(2 * 8 * 3.0).reshape(2, 8, 3)
    folded = pixel_shuffle(features, 2)
    assert folded.data_ptr() == features.data_ptr()
    assert folded[1, 1].tolist() == [float(i) for i in range(36, 48)]


@pytest.mark.parametrize(("image", "patch", "factor"), [(64, 16, 2), (384, 14, 3), (32, 8, 1)])
def test_its_rows_are_the_picture_tokens_of_the_configuration(image: int, patch: int, factor: int) -> None:
    model = ModelConfig(
        vision=VisionConfig(image_size=image, patch_size=patch), projector=ProjectorConfig(pixel_shuffle=factor)
    )
    assert pixel_shuffle(torch.zeros(1, model.vision.patches, 2), factor).shape[1] == model.image_tokens
