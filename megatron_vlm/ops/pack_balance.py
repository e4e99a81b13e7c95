"""Which pack goes to which rank and micro-batch, so that no rank waits for another."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from megatron_vlm.ops import pack_plan_reference
from megatron_vlm.ops.native import native_operators
from megatron_vlm.ops.pack_plan import PackPlan

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class CostModel:
    """What a pack costs, in any unit: the sum of three shares. Factors must be finite and not negative.

    Attributes:
        per_token: a position of a pack. Padding is computed like any other.
        per_squared_length: a pair of positions that attend to each other, which is the square of each segment's length;
            padding at the end of a pack is a segment too.
        per_patch: a patch of the vision encoder.
    """

    per_token: float = 1.0
    per_squared_length: float = 0.0
    per_patch: float = 0.0

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            if not math.isfinite(value) or value < 0:
                raise ValueError(f"{name} is {value}, but must be finite and not negative")


def pack_costs(plan: PackPlan, patches: Integers | None, cost: CostModel) -> npt.NDArray[np.float64]:
    """Return float64[m], the cost of each pack of the plan.

    Args:
        plan: of n documents.
        patches: int64[n], vision patches of each document, as given to `plan_packs`; None where there are none.
        cost: the factors.

    Raises:
        ValueError: where `patches` is another array, or has fewer elements than the plan has documents.
    """
    documents = int(plan.document.max(initial=-1)) + 1
    if patches is None:
        patches = np.zeros(documents, np.int64)
    if not isinstance(patches, np.ndarray) or patches.dtype != np.int64 or patches.ndim != 1 or len(patches) < documents:
        raise ValueError(f"patches must be an int64 array of one dimension with at least {documents} elements")
    if plan.packs == 0:
        return np.zeros(0)
    first = plan.pack_starts[:-1]
    padding = plan.capacity - np.add.reduceat(plan.length, first)
    squares = np.add.reduceat(plan.length**2, first) + padding**2
    in_vision = np.add.reduceat(np.where(plan.start == 0, patches[plan.document], 0), first)
    return cost.per_token * plan.capacity + cost.per_squared_length * squares + cost.per_patch * in_vision


@dataclass(frozen=True, slots=True, eq=False)
class BalancedPacks:
    """Every pack once, either in a step or left over.

    Attributes:
        order: int64[steps, ranks, micro_batches] pack numbers.
        left_over: int64[r] the last packs, fewer than a step needs, ascending.
    """

    order: Integers
    left_over: Integers


def balance_packs(costs: npt.NDArray[np.float64], ranks: int, micro_batches: int = 1, *, window: int = 1) -> BalancedPacks:
    """Deal packs to the ranks of each step so that the costliest rank costs little more than the mean.

    With more than one micro-batch a step, costly packs are joined with cheap ones: largest first to the rank with the
    least so far, every rank with as many (R. L. Graham's LPT, 1969, with equal counts), then exchanges between the
    costliest rank and others. With one there is nothing to join, and only packs of like cost in a step help: that takes
    packs from more steps than one, and so does an even better balance with several. `window` says from how many: packs
    move by fewer than `window` steps, and where they are in a random order, steps still come in one.

    Args:
        costs: float64[m], finite, of packs in the order of training.
        ranks: data-parallel ranks.
        micro_batches: of a rank in a step.
        window: steps that may exchange packs; 1 keeps every pack in its step.

    Returns:
        The packs by step, rank and micro-batch, deterministic, with ascending pack numbers in a rank's step; and those at
        the end that do not fill a step.

    Raises:
        ValueError: where `costs` is no such array or a number is not in 1 to 2^31 - 1.
    """
    if not isinstance(costs, np.ndarray) or costs.dtype != np.float64 or costs.ndim != 1:
        found = f"{costs.dtype}{list(costs.shape)}" if isinstance(costs, np.ndarray) else type(costs).__name__
        raise ValueError(f"costs must be a float64 array of one dimension, not {found}")
    if not np.isfinite(costs).all():
        raise ValueError(f"costs must be finite, but of pack {int(np.isfinite(costs).argmin())} it is not")
    for name, value in (("ranks", ranks), ("micro_batches", micro_batches), ("window", window)):
        if not 1 <= value < 2**31:
            raise ValueError(f"{name} is {value}, but must be 1 to 2^31 - 1")
    used = len(costs) - len(costs) % (ranks * micro_batches)
    operators = native_operators() or pack_plan_reference
    order = operators.balance_packs(np.ascontiguousarray(costs[:used]), ranks, micro_batches, window)
    return BalancedPacks(order.reshape(-1, ranks, micro_batches), np.arange(used, len(costs)))
