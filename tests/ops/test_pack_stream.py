"""Packs of a stream: a function of stream and window alone, nothing lost, bounded, nearly as full as planning it whole."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_vlm.ops.pack_plan import PackPlan, plan_packs
from megatron_vlm.ops.pack_stream import Document, PackWindow, plan_stream

Pack = list[tuple[int, int, int]]


def packs_of(plans: list[PackPlan]) -> list[Pack]:
    packs = []
    for plan in plans:
        pieces = list(zip(plan.document.tolist(), plan.start.tolist(), plan.length.tolist(), strict=True))
        packs += [pieces[a:b] for a, b in zip(plan.pack_starts[:-1], plan.pack_starts[1:], strict=True)]
    return packs


def in_chunks(window: PackWindow, lengths: np.ndarray, cuts: list[int]) -> list[PackPlan]:
    plans = []
    for chunk in np.split(lengths, cuts):
        plans += window.add(chunk)
    return plans


STREAMS = st.lists(st.integers(0, 90), max_size=60)
OPTIONS = st.fixed_dictionaries(
    {"window": st.integers(1, 30), "fill_holes": st.booleans(), "long_documents": st.sampled_from(["split", "truncate"])}
)


@given(STREAMS, OPTIONS, st.lists(st.integers(0, 60), max_size=5))
def test_how_the_stream_is_cut_into_calls_changes_nothing(lengths, options, cuts):
    array = np.array(lengths, np.int64)
    window = PackWindow(40, **options)
    plans = [*in_chunks(window, array, sorted(cuts)), window.finish()]
    expected = list(plan_stream(lengths, 40, **options))
    assert packs_of(plans) == packs_of(expected)
    assert [plan.lost_positions for plan in plans] == [plan.lost_positions for plan in expected]


@given(STREAMS, OPTIONS)
def test_every_position_of_the_stream_comes_once_and_no_pack_is_too_full(lengths, options):
    plans = list(plan_stream(lengths, 40, **options))
    seen: dict[int, list[tuple[int, int]]] = {}
    for pack in packs_of(plans):
        assert 0 < sum(length for _, _, length in pack) <= 40
        for document, start, length in pack:
            seen.setdefault(document, []).append((start, start + length))
    for document, length in enumerate(lengths):
        spans = sorted(seen.get(document, []))
        kept = min(length, 40) if options["long_documents"] == "truncate" else length
        assert [start for start, _ in spans] == [0, *[end for _, end in spans[:-1]]][: len(spans)]
        assert (spans[-1][1] if spans else 0) == kept
    assert sum(plan.lost_positions for plan in plans) + sum(plan.length.sum() for plan in plans) == sum(lengths)
    assert sum(plan.dropped_empty for plan in plans) == lengths.count(0)


@given(STREAMS, OPTIONS, st.integers(0, 60))
def test_a_stream_goes_on_from_a_saved_state(lengths, options, at):
    array = np.array(lengths, np.int64)
    first = PackWindow(40, **options)
    plans = first.add(array[:at])
    state = json.loads(json.dumps(first.state()))
    second = PackWindow(40, **options)
    second.load(state)
    plans += [*second.add(array[at:]), second.finish()]
    assert packs_of(plans) == packs_of(list(plan_stream(lengths, 40, **options)))


def test_what_waits_is_bounded_by_window_and_a_quarter():
    rng = np.random.default_rng(0)
    window = PackWindow(1000, window=100)
    for _ in range(40):
        # two never fit one pack, so every pack is a poor one
        window.add(rng.integers(501, 700, 77))
        state = window.state()
        assert len(state["waiting"][0]) < 100
        assert len(state["rounds"]) <= 25


def test_a_document_does_not_wait_for_ever():
    window = PackWindow(100, window=4)
    came = [packs_of(window.add(np.array([60, 60, 60, 60] if i else [51, 60, 60, 60], np.int64))) for i in range(8)]
    # the emptiest pack of each window waits, and the 51 is always that until its rounds are over
    assert [any(piece[0] == 0 for pack in packs for piece in pack) for packs in came].index(True) == 4


def test_vision_budgets_hold_in_a_stream():
    documents = [Document(10, 3, 1), Document(10, 3, 1), Document(10), Document(30, 9, 1), 5]
    plans = list(plan_stream(documents, 40, window=3, patch_capacity=5))
    assert [[piece[0] for piece in pack] for pack in packs_of(plans)] == [[0], [1, 2], [4]]
    assert sum(plan.dropped_vision for plan in plans) == 1


@pytest.mark.parametrize("fill_holes", [False, True])
def test_windows_pack_within_a_tenth_of_a_point_of_the_whole(fill_holes):
    rng = np.random.default_rng(0)
    lengths = np.where(rng.random(50_000) < 0.3, rng.lognormal(6.2, 1, 50_000), 576 + rng.integers(10, 80, 50_000))
    lengths = np.minimum(lengths.astype(np.int64) + 1, 4096)
    window = PackWindow(4096, window=5000, fill_holes=fill_holes)
    packs = sum(plan.packs for plan in [*window.add(lengths), window.finish()])
    whole = plan_packs(lengths, 4096, fill_holes=fill_holes).packs
    assert lengths.sum() / (packs * 4096) > lengths.sum() / (whole * 4096) - 0.001


def test_workers_that_share_packs_out_make_the_same_packs():
    lengths = np.random.default_rng(0).integers(1, 500, 3000).tolist()
    alone = packs_of(list(plan_stream(lengths, 1000, window=700)))
    for workers in (2, 5):
        shares = [packs_of(list(plan_stream(iter(lengths), 1000, window=700)))[w::workers] for w in range(workers)]
        assert [shares[i % workers][i // workers] for i in range(len(alone))] == alone


def test_a_window_serves_one_stream_after_another():
    window = PackWindow(10, window=2)
    first = [*window.add(np.array([4, 5, 9], np.int64)), window.finish()]
    again = [*window.add(np.array([4, 5, 9], np.int64)), window.finish()]
    assert packs_of(first) == packs_of(again)


def test_a_refused_call_takes_nothing():
    window = PackWindow(10, window=2)
    with pytest.raises(ValueError, match="of document 1 it is -1"):
        window.add(np.array([4, -1], np.int64))
    assert window.finish().packs == 0
    with pytest.raises(ValueError, match="window is 0"):
        PackWindow(10, window=0)
