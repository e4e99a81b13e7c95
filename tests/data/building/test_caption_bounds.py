"""Bounds on captions, in documents that have more than one text."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from megatron_vlm.data.building.options import BuildOptions
from megatron_vlm.data.building.prepared import Preparer
from megatron_vlm.data.encoded_pictures.filters import CaptionFilter
from megatron_vlm.data.records import Picture, Record, Text
from megatron_vlm.data.tokenizer import Tokenizer


@pytest.mark.parametrize(("least", "kept"), [(20, 1), (21, 0)])
def test_they_are_of_the_whole_text_and_not_of_a_turn(
    make_picture: Callable[..., bytes], tokenizer: Tokenizer, least: int, kept: int
) -> None:
    document = (Picture(make_picture()), Text("red?", learnt=False), Text("a red square ... go!"[:16]))
    options = BuildOptions(captions=CaptionFilter(least))
    batch = Preparer(tokenizer, options, np.dtype("<i4")).prepare("x", [Record("", 0, (document,), 0, 0)], False)
    assert (len(batch.sequences), sum(batch.filtered.values())) == (kept, 1 - kept)
