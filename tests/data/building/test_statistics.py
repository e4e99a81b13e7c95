"""Histograms of what is known, and of nothing else."""

from __future__ import annotations

import numpy as np

from megatron_vlm.data.building.statistics import Statistics
from megatron_vlm.data.indexed_format import IMAGE_MODE, TEXT_MODE

LENGTHS, PER_DOCUMENT = np.array([7, 5, 5], np.int32), np.array([2, 1], np.int32)
MODES = np.array([IMAGE_MODE, TEXT_MODE, TEXT_MODE], np.int8)
FACTS = np.array([[30, 40], [1, 0], [1, 0]], np.int32)


def test_sides_are_told_where_every_picture_has_them() -> None:
    statistics = Statistics()
    statistics.add(LENGTHS, MODES, FACTS, PER_DOCUMENT)
    statistics.add(LENGTHS[1:], MODES[1:], None, PER_DOCUMENT[1:].repeat(2))  # text has none
    assert statistics.describe() == {
        "tokens_a_document": {"4-7": 4},
        "images_a_document": {"0": 3, "1": 1},
        "longer_side_of_a_picture": {"32-63": 1},
    }
    statistics.add(LENGTHS, MODES, None, PER_DOCUMENT)
    statistics.add(LENGTHS, MODES, FACTS, PER_DOCUMENT)
    assert statistics.describe() == {"tokens_a_document": {"4-7": 8}, "images_a_document": {"0": 5, "1": 3}}
