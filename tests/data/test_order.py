"""The order of documents: a permutation that seed, source and epoch alone decide, today and in ten years."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_vlm.data.order import DocumentOrder, epoch_order


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
    blocks = DocumentOrder(10**8, 1234, "text")
    assert blocks.take(1, 5 * 10**7, 5 * 10**7 + 3).tolist() == PINNED


PINNED = [41500960, 55288264, 6819928]


def test_an_empty_source_has_an_empty_order() -> None:
    assert epoch_order(np.array([], np.int64), 1, "text", 0).tolist() == []


# -- blocks ---------------------------------------------------------------------------------------------------------------


def test_a_dataset_of_one_group_is_shuffled_whole() -> None:
    assert DocumentOrder(1000, 1, "text").take(3, 0, 1000).tolist() == epoch_order(np.arange(1000), 1, "text", 3).tolist()


@settings(max_examples=60)
@given(
    count=st.integers(1, 300),
    block=st.integers(1, 40),
    group=st.integers(1, 5),
    epoch=st.integers(0, 5),
    cuts=st.lists(st.integers(0, 320), max_size=6),
)
def test_any_cut_of_an_epoch_gives_each_document_once(
    count: int, block: int, group: int, epoch: int, cuts: list[int]
) -> None:
    order = DocumentOrder(count, 7, "x", block, group)
    places = [0, *sorted(cuts), count]
    parts = [order.take(epoch, a, b) for a, b in zip(places[:-1], places[1:], strict=True)]
    found = np.concatenate(parts)
    assert sorted(found.tolist()) == list(range(count))
    assert DocumentOrder(count, 7, "x", block, group).take(epoch, 0, count).tolist() == found.tolist()
    assert order.take(epoch, count, count + 5).tolist() == []


def test_a_group_reads_from_its_blocks_alone() -> None:
    order = DocumentOrder(10_000, 7, "x", block=100, group=4)
    first = order.take(0, 0, 400)
    assert len({int(d) // 100 for d in first}) <= 8, "four blocks, each of which may lie over two of the first epoch's"
    assert len({int(d) // 100 for d in order.take(0, 0, 10_000)}) == 100
    assert abs(np.corrcoef(first, np.arange(400))[0, 1]) < 0.2


def test_epochs_are_blocked_and_ordered_otherwise() -> None:
    order = DocumentOrder(10_000, 7, "x", block=100, group=4)
    groups = [set(order.take(epoch, 0, 400).tolist()) for epoch in range(3)]
    assert all(len(a & b) < 200 for i, a in enumerate(groups) for b in groups[i + 1 :])
