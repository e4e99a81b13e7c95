"""The blind control: everybody gets another's pictures, as many as it had."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_vlm.config.steps import StepShape
from megatron_vlm.evaluation import held_out
from megatron_vlm.evaluation.held_out import exchange_pictures, measure_held_out
from megatron_vlm.ops.assemble import MODALITY_CAPTION, MODALITY_TEXT, Segment
from megatron_vlm.training.scoring import Scored
from megatron_vlm.training.scoring_rows import learnt

IMAGE = 99
SQUARE = StepShape(0, 128, 1, 1, image_size=2, image_pool=1, image_tokens=4)
#: pictures keep their aspect, in patches of two pixels
NATIVE = StepShape(0, 12, 1, 1, image_size=8, image_pool=1, image_tokens=16, patch=2)


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
    exchanged = exchange_pictures(documents, SQUARE, IMAGE)
    assert [e.segment for e in exchanged] == [d.segment for d in documents]
    assert [len(e.pictures) for e in exchanged] == counts
    for number, document in enumerate(exchanged):
        if counts[number] and counts.count(counts[number]) > 1:
            assert all(picture[0, 0, 0] != number for picture in document.pictures)
    owners = sorted(int(picture[0, 0, 0]) for document in exchanged for picture in document.pictures)
    assert owners == sorted(number for number, count in enumerate(counts) for _ in range(count))


def _native(sides: list[tuple[int, int]], words: int) -> Scored:
    """A caption of `words` and one end under pictures of so many patches; pixels say how many."""
    pictures = tuple(np.full((2 * rows, 2 * columns, 3), rows * columns, np.uint8) for rows, columns in sides)
    ids = [IMAGE] * sum(rows * columns for rows, columns in sides) + list(range(words)) + [50]
    return Scored(Segment(np.array(ids, np.int32), MODALITY_CAPTION), pictures)


_sides = st.tuples(st.integers(1, 2), st.integers(1, 3))


@given(st.lists(st.tuples(st.lists(_sides, max_size=2), st.integers(0, 6)), max_size=20))
def test_pictures_of_other_shapes_bring_their_placeholders(made: list[tuple[list[tuple[int, int]], int]]) -> None:
    documents = [_native(sides, words) for sides, words in made]
    documents = [document for document in documents if len(document.segment.ids) - 1 <= NATIVE.sequence_length]
    exchanged = exchange_pictures(documents, NATIVE, IMAGE)
    for number, (before, after) in enumerate(zip(documents, exchanged, strict=True)):
        ids = after.segment.ids
        shown = [int(picture[0, 0, 0]) for picture in after.pictures]
        assert (ids == IMAGE).sum() == sum(shown)
        assert len(ids) - 1 <= NATIVE.sequence_length
        labels = [d.segment.ids[1:][learnt(d.segment, IMAGE)].tolist() for d in (before, after)]
        assert labels[0] == labels[1]
        if after.pictures and after.pictures is before.pictures:
            room = NATIVE.sequence_length - (len(ids) - 1) + sum(shown)
            others = [d for at, d in enumerate(documents) if at != number and len(d.pictures) == len(before.pictures)]
            assert all(sum(int(picture[0, 0, 0]) for picture in other.pictures) > room for other in others)


def test_unlike_shapes_are_exchanged() -> None:
    wide, small = _native([(1, 6)], 3), _native([(2, 2)], 5)
    first, second = exchange_pictures([wide, small], NATIVE, IMAGE)
    assert first.segment.ids.tolist() == [IMAGE] * 4 + [0, 1, 2, 50]
    assert second.segment.ids.tolist() == [IMAGE] * 6 + [0, 1, 2, 3, 4, 50]
    assert (first.pictures, second.pictures) == (small.pictures, wide.pictures)


class _Tokens:
    image_token_id = IMAGE


class _Scorer:
    """A model that pays 1 nat a label under its own picture, 3 under another's."""

    config = None
    shape = SQUARE
    tokens = _Tokens()
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
