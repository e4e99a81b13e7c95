"""`balance_packs` and `pack_costs`: every pack once, near equal ranks, native against reference, errors."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_vlm.ops import pack_balance, pack_plan_reference
from megatron_vlm.ops.native import native_operators
from megatron_vlm.ops.pack_balance import CostModel, balance_packs, pack_costs
from megatron_vlm.ops.pack_plan import plan_packs


@pytest.fixture(params=["native", "reference"])
def either(request, monkeypatch):
    if request.param == "native":
        assert native_operators() is not None, "not built: run make"
    else:
        monkeypatch.setattr(pack_balance, "native_operators", lambda: None)


def worst(costs: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Of each step, the costliest rank over the mean, less 1."""
    by_rank = costs[order].sum(axis=2)
    return by_rank.max(axis=1) / by_rank.mean(axis=1) - 1


def test_a_step_written_out(either):
    balanced = balance_packs(np.array([9.0, 8, 2, 1, 5]), 2, 2)
    assert balanced.order.tolist() == [[[0, 3], [1, 2]]]
    assert balanced.left_over.tolist() == [4]


def test_exchanges_mend_what_dealing_leaves(either):
    # dealing gives 11 + 8 + 6 and 10 + 9 + 2
    costs = np.array([8.0, 6, 10, 9, 2, 11])
    assert costs[balance_packs(costs, 2, 3).order].sum(axis=2).tolist() == [[23, 23]]


def test_one_micro_batch_is_balanced_by_packs_of_like_cost_from_a_window(either):
    costs = np.array([1.0, 5, 1, 5, 5, 1, 5, 1])
    assert worst(costs, balance_packs(costs, 2).order).tolist() == pytest.approx([2 / 3] * 4)
    balanced = balance_packs(costs, 2, window=4)
    assert worst(costs, balanced.order).tolist() == [0] * 4


def test_the_costliest_of_a_step_goes_to_the_rank_that_had_least(either):
    costs = np.array([4.0, 1, 4, 1, 4, 1, 4, 1])
    assert balance_packs(costs, 2).order[:, :, 0].tolist() == [[0, 1], [3, 2], [4, 5], [7, 6]]


def test_no_packs_no_steps(either):
    balanced = balance_packs(np.zeros(0), 4, 2, window=3)
    assert balanced.order.shape == (0, 4, 2)
    assert balanced.left_over.shape == (0,)
    assert balance_packs(np.ones(7), 4, 2).left_over.tolist() == list(range(7))


def test_64_ranks_wait_for_none():
    costs = np.random.default_rng(0).lognormal(0, 0.3, 64 * 8 * 8)
    order = balance_packs(costs, 64, 8).order
    assert worst(costs, order).max() < 0.01
    as_they_come = np.arange(len(costs)).reshape(order.shape)
    assert worst(costs, as_they_come).min() > 0.1


CASES = st.tuples(
    st.lists(st.integers(0, 9) | st.floats(0, 1e6), max_size=60), st.integers(1, 5), st.integers(1, 4), st.integers(1, 4)
)


@given(CASES)
def test_every_pack_comes_once_and_from_its_window(case):
    values, ranks, micro_batches, window = case
    costs = np.array(values, np.float64)
    balanced = balance_packs(costs, ranks, micro_batches, window=window)
    steps, size = len(balanced.order), ranks * micro_batches
    assert balanced.order.shape == (len(values) // size, ranks, micro_batches)
    assert balanced.order.dtype == balanced.left_over.dtype == np.int64
    assert balanced.left_over.tolist() == list(range(steps * size, len(values)))
    assert sorted(balanced.order.ravel().tolist()) == list(range(steps * size))
    in_step = np.repeat(np.arange(steps), size)
    np.testing.assert_array_equal(balanced.order.ravel() // size // window, in_step // window)
    assert (np.diff(balanced.order, axis=2) > 0).all()


@given(CASES)
def test_native_agrees_with_the_reference(case):
    values, *numbers = case
    costs = np.array(values[: len(values) // (numbers[0] * numbers[1]) * numbers[0] * numbers[1]], np.float64)
    native = native_operators()
    assert native is not None
    np.testing.assert_array_equal(native.balance_packs(costs, *numbers), pack_plan_reference.balance_packs(costs, *numbers))


def test_costs_written_out():
    lengths, patches = np.array([6, 3, 5, 14], np.int64), np.array([7, 2, 0, 0], np.int64)
    plan = plan_packs(lengths, 10, patches=patches, patch_capacity=9, min_piece=1)
    assert [plan.document[a:b].tolist() for a, b in zip(plan.pack_starts[:-1], plan.pack_starts[1:], strict=True)] == [
        [3],
        [0, 3],
        [1, 2],
    ]
    assert pack_costs(plan, patches, CostModel(1, 0, 0)).tolist() == [10, 10, 10]
    # padding of 2 beside 3 and 5
    assert pack_costs(plan, patches, CostModel(0, 1, 0)).tolist() == [100, 36 + 16, 9 + 25 + 4]
    assert pack_costs(plan, patches, CostModel(0, 0, 1)).tolist() == [0, 7, 2]
    assert pack_costs(plan, patches, CostModel(1, 0.5, 10)).tolist() == [60, 106, 49]
    assert pack_costs(plan, None, CostModel(0, 0, 1)).tolist() == [0, 0, 0]


def test_a_plan_without_packs_has_no_costs():
    assert pack_costs(plan_packs(np.zeros(0, np.int64), 4), None, CostModel()).shape == (0,)


@pytest.mark.parametrize(
    ("costs", "numbers", "message"),
    [
        ([1.0], {}, "not list"),
        (np.ones(2, np.float32), {}, r"not float32\[2\]"),
        (np.ones((2, 1)), {}, r"not float64\[2, 1\]"),
        (np.array([1, np.nan]), {}, "of pack 1 it is not"),
        (np.ones(2), {"ranks": 0}, "ranks is 0"),
        (np.ones(2), {"micro_batches": 0}, "micro_batches is 0"),
        (np.ones(2), {"window": 0}, "window is 0"),
        (np.ones(2), {"ranks": 2**31}, "ranks is 2147483648"),
    ],
)
def test_errors_say_what_is_wrong(costs, numbers, message):
    with pytest.raises(ValueError, match=message):
        balance_packs(costs, **{"ranks": 1, **numbers})


def test_errors_of_costs():
    plan = plan_packs(np.array([1, 2], np.int64), 4)
    with pytest.raises(ValueError, match="with at least 2 elements"):
        pack_costs(plan, np.zeros(1, np.int64), CostModel())
    with pytest.raises(ValueError, match="per_patch is -1"):
        CostModel(per_patch=-1)
    with pytest.raises(ValueError, match="per_token is nan"):
        CostModel(per_token=float("nan"))
