"""`order_packs`: a permutation, near the shares at every prefix, native as the reference, errors."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from megatron_vlm.ops import pack_order, pack_plan_reference
from megatron_vlm.ops.native import native_operators
from megatron_vlm.ops.pack_order import WHOLE_SHARE, order_packs

CAPACITY = 100


def case(packs: int, sources: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Packs of all kinds; shares are those that they have in all."""
    rng = np.random.default_rng(seed)
    kinds = rng.dirichlet(np.full(sources, 0.2), packs)
    amounts = (kinds * rng.integers(1, CAPACITY + 1, packs)[:, None]).astype(np.int64)
    bases = np.repeat(amounts.sum(axis=1)[:, None], sources, axis=1)
    shares = (amounts.sum(axis=0) / max(1, amounts.sum()) * WHOLE_SHARE).astype(np.int64)
    return amounts, bases, np.repeat(shares[None], packs, axis=0), np.zeros(sources, np.int64)


@example(packs=15, sources=2, seed=0, candidates=1, close=0.0)  # none of the candidates stays within a pack
@settings(max_examples=60)
@given(
    packs=st.integers(0, 60),
    sources=st.integers(1, 4),
    seed=st.integers(0, 1000),
    candidates=st.integers(1, 70),
    close=st.sampled_from([0.0, 0.3, 1.0]),
)
def test_native_and_reference_agree(packs: int, sources: int, seed: int, candidates: int, close: float) -> None:
    assert native_operators() is not None, "not built: run make"
    amounts, bases, shares, behind = case(packs, sources, seed)
    pack_of = np.full(sources, float(CAPACITY))
    order, after = order_packs(amounts, bases, shares, behind, pack_of, candidates=candidates, close_enough=close)
    reference = pack_plan_reference.order_packs(
        amounts.ravel(), bases.ravel(), shares.ravel(), behind, 1 / (pack_of * WHOLE_SHARE), candidates, close
    )
    assert (order.tolist(), after.tolist()) == (reference[0].tolist(), reference[1].tolist())
    assert sorted(order.tolist()) == list(range(packs))
    assert after.tolist() == ((shares * bases).sum(axis=0) - amounts.sum(axis=0) * WHOLE_SHARE).tolist()


@pytest.mark.parametrize("sources", [2, 3, 4])
def test_every_prefix_is_within_a_pack(sources: int) -> None:
    amounts, bases, shares, behind = case(2000, sources, 1)
    order, _ = order_packs(amounts, bases, shares, behind, np.full(sources, float(CAPACITY)))
    away = np.cumsum(amounts[order] - bases[order] * shares / WHOLE_SHARE, axis=0)
    assert np.abs(away).max() <= CAPACITY
    unordered = np.cumsum(amounts - bases * shares / WHOLE_SHARE, axis=0)
    assert np.abs(unordered).max() > 5 * CAPACITY


def test_what_was_behind_is_made_up_for() -> None:
    amounts = np.array([[100, 0], [0, 100]] * 4)
    shares = np.full((8, 2), WHOLE_SHARE // 2)
    owed = np.array([0, 200 * WHOLE_SHARE])
    order, after = order_packs(amounts, np.full((8, 2), 100), shares, owed, np.array([100.0, 100.0]))
    assert order[:2].tolist() == [1, 3], "the second source first"
    assert after.tolist() == owed.tolist()


def test_an_order_that_keeps_the_shares_stays() -> None:
    amounts = np.array([[50, 50]] * 30)
    shares = np.full((30, 2), WHOLE_SHARE // 2)
    order, after = order_packs(amounts, np.full((30, 2), 100), shares, np.zeros(2, np.int64), np.array([100.0, 100.0]))
    assert order.tolist() == list(range(30))
    assert after.tolist() == [0, 0]


def test_wrong_arrays_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    amounts, bases, shares, behind = case(4, 2, 0)
    pack_of = np.ones(2)
    with pytest.raises(ValueError, match=r"shares must have shape \[4, 2\], not \[3, 2\]"):
        order_packs(amounts, bases, shares[:3], behind, pack_of)
    with pytest.raises(ValueError, match="pack_of must be finite and above 0"):
        order_packs(amounts, bases, shares, behind, pack_of * 0)
    with pytest.raises(ValueError, match="cannot count"):
        order_packs(amounts + (1 << 29), bases, shares, behind, pack_of)
    monkeypatch.setattr(pack_order, "native_operators", lambda: None)
    order, _ = order_packs(amounts, bases, shares, behind, pack_of)
    assert sorted(order.tolist()) == [0, 1, 2, 3]
