"""The blind control: everybody gets another's pictures, as many as it had."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_vlm.evaluation import held_out
from megatron_vlm.evaluation.held_out import exchange_pictures, measure_held_out
from megatron_vlm.ops.assemble import MODALITY_CAPTION, MODALITY_TEXT, Segment
from megatron_vlm.training.scoring import Scored


def _documents(counts: list[int], modality: int = MODALITY_CAPTION) -> list[Scored]:
    """Documents with `counts` pictures; a picture's pixels name the document that it belongs to."""
    return [
        Scored(
            Segment(np.array([number, 1, 2], np.int32), modality),
            tuple(np.full((2, 2, 3), number, np.uint8) for _ in range(count)),
        )
        for number, count in enumerate(counts)
    ]


@given(st.lists(st.integers(0, 3), max_size=30))
def test_nobody_keeps_its_own_and_no_picture_is_lost(counts: list[int]) -> None:
    documents = _documents(counts)
    exchanged = exchange_pictures(documents)
    assert [e.segment for e in exchanged] == [d.segment for d in documents]
    assert [len(e.pictures) for e in exchanged] == counts
    for number, document in enumerate(exchanged):
        if counts[number] and counts.count(counts[number]) > 1:
            assert all(picture[0, 0, 0] != number for picture in document.pictures)
    owners = sorted(int(picture[0, 0, 0]) for document in exchanged for picture in document.pictures)
    assert owners == sorted(number for number, count in enumerate(counts) for _ in range(count))


class _Scorer:
    """A model that pays 1 nat a label under its own picture, 3 under another's."""

    config = None
    shape = None
    decodes = True

    def score(self, documents: list[Scored]) -> np.ndarray:
        own = [all(p[0, 0, 0] == d.segment.ids[0] for p in d.pictures) for d in documents]
        return np.array([[2.0, 2.0] if mine else [6.0, 2.0] for mine in own])


@pytest.mark.parametrize("modality", [MODALITY_CAPTION, MODALITY_TEXT])
def test_the_gap_is_what_the_picture_is_worth(modality: int, monkeypatch: pytest.MonkeyPatch) -> None:
    documents = _documents([1] * 5 if modality == MODALITY_CAPTION else [0] * 5, modality)
    monkeypatch.setattr(held_out, "held_out_documents", lambda *_: documents)
    result = measure_held_out(_Scorer(), None, 0)  # type: ignore[arg-type]
    assert (result.documents, result.tokens, result.loss) == (5, 10, 1.0)
    if modality == MODALITY_CAPTION:
        assert (result.modality, result.blind_loss, result.blind_gap, result.gap_error) == ("caption", 3.0, 2.0, 0.0)
    else:
        assert (result.modality, result.blind_loss, result.blind_gap, result.gap_error) == ("text", None, None, None)
