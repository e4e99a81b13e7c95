"""Pixel-shuffle folds neighbours into one row: nothing is lost, and what shares a row is a square of the picture."""

from __future__ import annotations

import pytest
import torch

from megatron_vlm.config.model import ModelConfig, ProjectorConfig, VisionConfig
from megatron_vlm.models.projector import pixel_shuffle


def test_two_by_two_of_a_grid_of_four() -> None:
    """Patches numbered in reading order, one feature each."""
    features = torch.arange(16.0).reshape(1, 16, 1)
    assert pixel_shuffle(features, 2).tolist() == [[[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]]


def test_the_features_of_a_patch_stay_together() -> None:
    features = torch.arange(8.0).reshape(1, 4, 2)
    assert pixel_shuffle(features, 2).tolist() == [[list(range(8))]]


def test_a_factor_of_one_changes_nothing() -> None:
    features = torch.randn(2, 9, 3)
    assert pixel_shuffle(features, 1) is features


@pytest.mark.parametrize(("grid", "factor"), [(4, 2), (6, 2), (6, 3), (27, 3), (27, 9)])
def test_rows_are_squares_in_reading_order(grid: int, factor: int) -> None:
    rows_and_columns = torch.stack(torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="ij"), -1)
    features = rows_and_columns.reshape(1, grid * grid, 2)
    small = grid // factor
    folded = pixel_shuffle(features, factor).reshape(small, small, factor * factor, 2)
    for row in range(small):
        for column in range(small):
            square = [[row * factor + r, column * factor + c] for r in range(factor) for c in range(factor)]
            assert folded[row, column].tolist() == square


def test_pictures_do_not_mix_and_nothing_is_lost() -> None:
    features = torch.randn(3, 36, 5)
    folded = pixel_shuffle(features, 3)
    assert folded.shape == (3, 4, 45)
    for one, other in zip(features, folded, strict=True):
        assert torch.equal(one.flatten().sort().values, other.flatten().sort().values)
    assert torch.equal(pixel_shuffle(features[1:2], 3), folded[1:2])


@pytest.mark.parametrize(("image", "patch", "factor"), [(64, 16, 2), (384, 14, 3), (32, 8, 1)])
def test_its_rows_are_the_picture_tokens_of_the_configuration(image: int, patch: int, factor: int) -> None:
    model = ModelConfig(
        vision=VisionConfig(image_size=image, patch_size=patch), projector=ProjectorConfig(pixel_shuffle=factor)
    )
    assert pixel_shuffle(torch.zeros(1, model.vision.patches, 2), factor).shape[1] == model.image_tokens
