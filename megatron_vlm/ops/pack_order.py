"""In which order packs are trained on, so that every source has its share at every prefix."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from megatron_vlm.ops import pack_plan_reference
from megatron_vlm.ops.native import native_operators

Integers = npt.NDArray[np.int64]

#: shares are integers in parts of this: accounts are exact, and the same on every machine
WHOLE_SHARE = 1 << 32


def order_packs(
    amounts: Integers,
    bases: Integers,
    shares: Integers,
    behind: Integers,
    pack_of: npt.NDArray[np.float64],
    *,
    candidates: int = 64,
    close_enough: float = 0.5,
) -> tuple[Integers, Integers]:
    """Order m packs of s sources by error diffusion.

    At every place, of the next `candidates` packs the first is taken that leaves no source further than `close_enough`
    packs from its share, else the one that leaves the furthest source nearest; where that is more than a pack, the ones
    behind them are looked at until one is not. So an order that is random stays so as far as the shares allow.

    Args:
        amounts: int64[m, s], what a pack gives to a source: positions, those of pictures, or documents.
        bases: int64[m, s], that of which the source has a share, in the same unit.
        shares: int64[m, s], the share of a source at each place of the order, in parts of WHOLE_SHARE.
        behind: int64[s], what each source is behind its share before the first pack, in parts of WHOLE_SHARE.
        pack_of: float64[s], how much of a source counts as a pack, above 0.

    Returns:
        int64[m], the packs in their order; int64[s], what each source is behind after them.

    Raises:
        ValueError: where an array has another shape, or a count could leave the range of int64.
    """
    packs, sources = amounts.shape
    for name, array, shape in (
        ("bases", bases, (packs, sources)),
        ("shares", shares, (packs, sources)),
        ("behind", behind, (sources,)),
        ("pack_of", pack_of, (sources,)),
    ):
        if array.shape != shape:
            raise ValueError(f"{name} must have shape {list(shape)}, not {list(array.shape)}")
    if packs and max(amounts.max(), bases.max()) > 1 << 28:
        raise ValueError("a pack holds more than 2^28 of a source, which the account cannot count")
    if not (np.isfinite(pack_of).all() and (pack_of > 0).all()):
        raise ValueError("pack_of must be finite and above 0")
    operators = native_operators() or pack_plan_reference
    given, base, share = (np.ascontiguousarray(array).ravel() for array in (amounts, bases, shares))
    scale = 1.0 / (pack_of * WHOLE_SHARE)
    return operators.order_packs(given, base, share, np.ascontiguousarray(behind), scale, candidates, close_enough)
