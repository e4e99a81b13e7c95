"""Documents that begin alike are laid once: nothing is lost, nothing is read twice, and rows hold what fits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_vlm.ops.assemble import MODALITY_TEXT, Segment
from megatron_vlm.training.scoring_rows import Scored, families, lay_rows, learnt

CAPACITY, IMAGE = 12, 1


def _document(ids: list[int], family: int | None = None, **fields: object) -> Scored:
    return Scored(Segment(np.array(ids, np.int32), MODALITY_TEXT, **fields), (), family)  # type: ignore[arg-type]


@given(
    st.lists(
        st.tuples(
            st.lists(st.integers(5, 7), min_size=1, max_size=6),
            st.lists(st.lists(st.integers(5, 7), min_size=1, max_size=6), min_size=1, max_size=4),
        ),
        min_size=1,
        max_size=5,
    ),
    st.booleans(),
)
def test_every_document_once_with_what_it_shares(questions: list[tuple[list[int], list[list[int]]]], share: bool) -> None:
    documents = [
        _document([*context, *answer], number) for number, (context, answers) in enumerate(questions) for answer in answers
    ]
    found = families(documents, CAPACITY, IMAGE, share)
    assert [number for family in found for number in family.documents] == list(range(len(documents)))
    for family in found:
        ids = [documents[number].segment.ids for number in family.documents]
        assert all((one[: family.shared] == ids[0][: family.shared]).all() for one in ids)
        tails = sum(len(one) - 1 - family.shared for one in ids)
        assert family.positions == family.shared + tails <= CAPACITY
        if not share:
            assert len(family.documents) == 1
    rows = lay_rows(found, CAPACITY)
    assert sorted(n for row in rows for family in row for n in family.documents) == list(range(len(documents)))
    assert all(sum(family.positions for family in row) <= CAPACITY for row in rows)


def test_sharing_takes_less() -> None:
    documents = [_document([5, 6, 7, 8, 9, answer], 0) for answer in (10, 11, 12, 13)]
    (family,) = families(documents, CAPACITY, IMAGE, share=True)
    assert (family.documents, family.shared, family.positions) == ((0, 1, 2, 3), 5, 5)
    alone = families(documents, CAPACITY, IMAGE, share=False)
    assert sum(one.positions for one in alone) == 20


def test_a_picture_behind_what_is_shared_keeps_documents_apart() -> None:
    documents = [_document([5, number, IMAGE, IMAGE, 9], 0) for number in (6, 7)]
    assert [family.documents for family in families(documents, CAPACITY, IMAGE, share=True)] == [(0,), (1,)]


def test_a_document_longer_than_a_row() -> None:
    with pytest.raises(ValueError, match="document 1 has 13 positions, a row 12"):
        families([_document([5, 5]), _document([5] * 14)], CAPACITY, IMAGE, share=True)


def test_what_is_learnt() -> None:
    segment = Segment(np.array([5, 6, 7, IMAGE, 8, 9], np.int32), MODALITY_TEXT, loss_from=1, masked=((4, 5),))
    assert learnt(segment, IMAGE).tolist() == [False, True, False, False, True]
    assert not learnt(Segment(np.array([5, 6], np.int32), 0), IMAGE).any()
