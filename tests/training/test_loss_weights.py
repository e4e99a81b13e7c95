"""Factors by modality: one for each learnt label, their sum kept, and nothing where all are 1."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from megatron_vlm.config.data import TokenCounts
from megatron_vlm.config.steps import StepShape
from megatron_vlm.data.micro_batch import MicroBatch, make_micro_batch
from megatron_vlm.errors import ConfigError
from megatron_vlm.ops.assemble import MODALITY_CAPTION, MODALITY_NONE, MODALITY_TEXT, Segment
from megatron_vlm.training.loss_weights import LabelWeights

TOKENS = TokenCounts(vocab_size=100, eod_id=0, image_token_id=1, pad_id=2)
CPU = torch.device("cpu")


def batch() -> MicroBatch:
    """Two labels of text, a document without loss, two labels of a caption after a picture, padding."""
    segments = [
        Segment(np.array([10, 11, 12], np.int32), MODALITY_TEXT),
        Segment(np.array([13, 14], np.int32), MODALITY_NONE),
        Segment(np.array([1, 1, 20, 0], np.int32), MODALITY_CAPTION),
    ]
    return make_micro_batch([segments], None, TOKENS, StepShape(0, 8, 1, 1, 4, 1, 2))


def test_each_label_has_the_factor_of_its_modality() -> None:
    weights = LabelWeights.of({"caption": 2.5, "text": 0.25}, CPU)
    assert weights is not None
    assert weights.count(batch()).tolist() == [[0.25, 0.25, 0, 0, 2.5, 2.5, 0, 0]]
    assert weights.total.item() == 5.5
    weights.count(batch())
    assert weights.total.item() == 11.0


def test_what_is_not_named_has_a_factor_of_one() -> None:
    weights = LabelWeights.of({"caption": 0.0}, CPU)
    assert weights is not None
    assert weights.count(batch()).tolist() == [[1, 1, 0, 0, 0, 0, 0, 0]]


def test_the_sum_of_many_factors_is_exact() -> None:
    """fp32 would lose one label in ten of these."""
    weights = LabelWeights.of({"text": 0.5, "caption": 0.5}, CPU)
    assert weights is not None
    weights.total += 2.0**30
    for _ in range(100):
        weights.count(batch())
    assert weights.total.item() == 2.0**30 + 200


@pytest.mark.parametrize("ones", [{}, {"text": 1.0}, {"text": 1, "caption": 1.0}])
def test_factors_of_one_are_no_factors(ones: dict[str, float]) -> None:
    assert LabelWeights.of(ones, CPU) is None


@pytest.mark.parametrize("wrong", [{"image": 2.0}, {"text": -0.5}, {"caption": float("nan")}])
def test_other_modalities_and_factors_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=rf"loss_weights\.{next(iter(wrong))}.*at least 0 for text, caption"):
        LabelWeights.of(wrong, CPU)
