"""The order of documents: a permutation that seed, source and epoch alone decide, today and in ten years."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_vlm.data.order import epoch_order


@settings(max_examples=50)
@given(
    documents=st.lists(st.integers(0, 2**40), unique=True, max_size=200).map(sorted),
    seed=st.integers(-(2**63), 2**63),
    epoch=st.integers(0, 1000),
)
def test_it_is_a_permutation(documents: list[int], seed: int, epoch: int) -> None:
    order = epoch_order(np.array(documents, np.int64), seed, "text", epoch)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == documents


def test_seed_source_and_epoch_each_change_it() -> None:
    documents = np.arange(1000)
    orders = [
        epoch_order(documents, seed, source, epoch).tolist()
        for seed, source, epoch in [(1, "text", 0), (2, "text", 0), (1, "captions", 0), (1, "text", 1)]
    ]
    assert epoch_order(documents, 1, "text", 0).tolist() == orders[0]
    for i, one in enumerate(orders):
        for other in orders[i + 1 :]:
            same_place = sum(a == b for a, b in zip(one, other, strict=True))
            assert same_place < 10, "two independent orders of 1000 agree in about 1 place"


def test_neighbours_are_parted() -> None:
    """The correlation of place and number is that of chance (standard deviation 1/sqrt(10000) = 0.01)."""
    order = epoch_order(np.arange(10_000), 1234, "text", 0)
    assert abs(np.corrcoef(order, np.arange(10_000))[0, 1]) < 0.05
    assert abs(np.corrcoef(order[1:], order[:-1])[0, 1]) < 0.05


def test_leaving_documents_out_keeps_the_order_of_the_rest() -> None:
    """A key belongs to a document and not to a place, so that a filtered dataset trains in the same order."""
    whole = epoch_order(np.arange(100), 5, "text", 3)
    odd = epoch_order(np.arange(1, 100, 2), 5, "text", 3)
    assert odd.tolist() == [document for document in whole.tolist() if document % 2]


def test_the_order_is_pinned_for_ever() -> None:
    """If these change, every run in progress would repeat some documents and lose others when it resumes."""
    assert epoch_order(np.arange(1000), 1234, "text", 0)[:8].tolist() == [554, 10, 257, 303, 190, 44, 108, 416]
    assert epoch_order(np.arange(1000), 1234, "captions", 1)[:8].tolist() == [769, 751, 109, 30, 410, 884, 654, 328]
    assert epoch_order(np.array([3, 7, 2**40]), -1, "x", 2).tolist() == [1099511627776, 3, 7]


def test_an_empty_source_has_an_empty_order() -> None:
    assert epoch_order(np.array([], np.int64), 1, "text", 0).tolist() == []
