"""Placeholders of other pictures: the document as it would have been made with them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_vlm.evaluation.placeholders import with_rows
from megatron_vlm.ops.assemble import MODALITY_CAPTION, Segment
from megatron_vlm.training.scoring_rows import learnt

IMAGE = 1
#: a picture's rows before and after; or words, and whether they are learnt
_parts = st.lists(
    st.one_of(
        st.tuples(st.integers(1, 5), st.integers(1, 5)),
        st.tuples(st.lists(st.integers(2, 99), min_size=1, max_size=4), st.booleans()),
    ),
    min_size=1,
    max_size=8,
)


def _segment(parts: list, which: int) -> tuple[Segment, list[int]]:
    """A document of the parts, with the rows that its pictures have before (0) or after (1)."""
    ids: list[int] = []
    masked, rows = [], []
    for part in parts:
        if isinstance(part[0], int):
            rows.append(part[which])
            ids += [IMAGE] * part[which]
            continue
        words, is_learnt = part
        if not is_learnt:
            masked.append((len(ids), len(ids) + len(words)))
        ids += words
    return Segment(np.array(ids, np.int32), MODALITY_CAPTION, masked=tuple(masked)), rows


@given(_parts)
def test_it_is_the_document_made_with_the_other_pictures(parts: list) -> None:
    (before, own), (after, others) = _segment(parts, 0), _segment(parts, 1)
    found = with_rows(before, IMAGE, own, others)
    assert (found.ids.dtype, found.ids.tolist()) == (np.int32, after.ids.tolist())
    assert (found.modality, found.masked) == (after.modality, after.masked)
    assert learnt(found, IMAGE).tolist() == learnt(after, IMAGE).tolist()


@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 3))
def test_an_answer_begins_at_the_same_word(own: int, other: int, words: int) -> None:
    def made(rows: int) -> Segment:
        return Segment(np.array([IMAGE] * rows + [7] * words + [8, 9], np.int32), MODALITY_CAPTION, rows + words - 1)

    assert with_rows(made(own), IMAGE, [own], [other]).loss_from == made(other).loss_from


@pytest.mark.parametrize(("own", "others"), [((2,), (3,)), ((3,), (1, 2))])
def test_rows_that_are_not_those_of_the_document(own: tuple[int, ...], others: tuple[int, ...]) -> None:
    segment = Segment(np.array([IMAGE] * 3 + [5], np.int32), MODALITY_CAPTION)
    with pytest.raises(ValueError, match="3 placeholders"):
        with_rows(segment, IMAGE, own, others)
