"""The order of documents: a permutation an epoch, a pure function of seed, source and epoch."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt


def _mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """splitmix64's finaliser (Steele, Lea, Flood 2014): spelled out, because a library's shuffle may change with it."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def epoch_order(documents: npt.NDArray[np.int64], seed: int, source: str, epoch: int) -> npt.NDArray[np.int64]:
    """`documents` shuffled for one epoch; every rank, layout and machine gets the same."""
    digest = hashlib.sha256(f"{seed}:{source}:{epoch}".encode()).digest()
    start = np.uint64(int.from_bytes(digest[:8], "little"))
    with np.errstate(over="ignore"):
        keys = _mix(documents.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + start)
    return documents[np.argsort(keys, kind="stable")]
