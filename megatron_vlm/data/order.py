"""The order of documents: a permutation an epoch, a pure function of seed, source and epoch, never held whole.

Documents lie in blocks of the dataset. An epoch takes the blocks in a permuted order, a group of blocks at a time, and
shuffles the documents of a group together: the reads of a group stay within its blocks, and the memory is a group's, however
long the dataset. A dataset of one group is shuffled whole.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]

#: documents of a block, and blocks of a group
BLOCK, GROUP = 4096, 64
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _inverse(odd: int) -> np.uint64:
    """Of an odd number modulo 2^64."""
    return np.uint64(pow(odd, -1, 1 << 64))


_INVERSE_GOLDEN = _inverse(int(_GOLDEN))


def _mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """splitmix64's finaliser (Steele, Lea, Flood 2014): spelled out, because a library's shuffle may change with it."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _unmix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The numbers of which `_mix` made these."""
    x = (x ^ (x >> np.uint64(31)) ^ (x >> np.uint64(62))) * _inverse(0x94D049BB133111EB)
    x = (x ^ (x >> np.uint64(27)) ^ (x >> np.uint64(54))) * _inverse(0xBF58476D1CE4E5B9)
    return x ^ (x >> np.uint64(30)) ^ (x >> np.uint64(60))


def shuffled(numbers: Integers, key: str) -> Integers:
    """`numbers` (not negative) in the order of their keys: the place of one depends on itself and the text `key` alone."""
    start = np.uint64(int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little"))
    with np.errstate(over="ignore"):
        # keys are a bijection of the numbers: none are equal, and sorted ones say whose they are, for less than an argsort
        keys = np.sort(_mix(numbers.astype(np.uint64) * _GOLDEN + start))
        return ((_unmix(keys) - start) * _INVERSE_GOLDEN).astype(np.int64)


def epoch_order(documents: Integers, seed: int, source: str, epoch: int) -> Integers:
    """`documents` shuffled whole for one epoch; every rank, layout and machine gets the same."""
    return shuffled(documents, f"{seed}:{source}:{epoch}")


class DocumentOrder:
    """The documents 0 to `count` - 1 of one source in the order of each epoch, by place.

    Args:
        count: documents of the dataset.
        seed, source: the run's seed and the source's name.
        block, group: documents of a block and blocks of a group; another choice is another order.
    """

    def __init__(self, count: int, seed: int, source: str, block: int = BLOCK, group: int = GROUP) -> None:
        self.count, self.seed, self.source, self.block, self.group = count, seed, source, block, group
        self._epoch = -1
        self._blocks: Integers  # in the order of the epoch
        self._turn = 0
        self._starts: Integers  # place at which each group begins, and the end
        self._held = (-1, -1)
        self._documents: Integers

    def take(self, epoch: int, start: int, stop: int) -> Integers:
        """The documents at places `start` to `stop` - 1 of an epoch, int64; fewer where the epoch ends before."""
        stop = min(stop, self.count)
        if start >= stop:
            return np.zeros(0, np.int64)
        self._enter(epoch)
        first = int(np.searchsorted(self._starts, start, side="right")) - 1
        parts = []
        while start < stop:
            begin, end = int(self._starts[first]), int(self._starts[first + 1])
            parts.append(self._of_group(epoch, first)[start - begin : min(stop, end) - begin])
            start, first = end, first + 1
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _enter(self, epoch: int) -> None:
        if epoch == self._epoch:
            return
        blocks = -(-self.count // self.block)
        key = f"{self.seed}:{self.source}:{epoch}"
        self._blocks = shuffled(np.arange(blocks, dtype=np.int64), f"{key}:blocks")
        # blocks begin elsewhere each epoch, so that no document is always in the short one or with the same neighbours
        self._turn = int(shuffled(np.arange(min(self.block, self.count), dtype=np.int64), f"{key}:turn")[0])
        sizes = np.minimum(self.block, self.count - self._blocks * self.block)
        groups = np.add.reduceat(sizes, np.arange(0, blocks, self.group))
        self._starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(groups)])
        self._epoch, self._held = epoch, (-1, -1)

    def _of_group(self, epoch: int, number: int) -> Integers:
        if self._held != (epoch, number):
            chosen = self._blocks[number * self.group : (number + 1) * self.group]
            places = (chosen[:, None] * self.block + np.arange(self.block)).ravel()
            documents = (places[places < self.count] + self._turn) % self.count
            self._documents = epoch_order(np.sort(documents), self.seed, self.source, epoch)
            self._held = (epoch, number)
        return self._documents
