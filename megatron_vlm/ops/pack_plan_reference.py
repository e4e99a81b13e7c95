"""What csrc/pack_plan.h says, in plain Python: the same results, for tests and where there is no extension.

Arguments are taken as checked; `megatron_vlm.ops.pack_plan` and `pack_balance` do that.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import defaultdict

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]

# The greatest over the mean of a step's ranks, from which on exchanges are not worth the search.
_CLOSE_ENOUGH = 1.0001


class _Stacks:
    """Stacks by key, and the keys that have any, in order."""

    def __init__(self) -> None:
        self.stacks: defaultdict[tuple[int, int, int], list[int]] = defaultdict(list)
        self.keys: list[tuple[int, int, int]] = []

    def put(self, key: tuple[int, int, int], item: int) -> None:
        if not self.stacks[key]:
            insort(self.keys, key)
        self.stacks[key].append(item)

    def take(self, key: tuple[int, int, int]) -> int:
        item = self.stacks[key].pop()
        if not self.stacks[key]:
            del self.keys[bisect_left(self.keys, key)]
        return item

    def has(self, key: tuple[int, int, int]) -> bool:
        return bool(self.stacks.get(key))


def pack_best_fit(lengths: Integers, capacity: int) -> tuple[Integers, int]:
    """Best-fit decreasing: the pack of each item, and the number of packs."""
    nothing = np.zeros(len(lengths), np.int64)
    order = np.argsort(-lengths, kind="stable")
    return pack_within_budgets(lengths, nothing, nothing, order, capacity, 0, 0)


def pack_within_budgets(
    lengths: Integers,
    patches: Integers,
    images: Integers,
    order: Integers,
    capacity: int,
    patch_capacity: int,
    image_capacity: int,
) -> tuple[Integers, int]:
    """Best fit by length in the given order, within all budgets: the pack of each item, and the number of packs."""
    pack_of, packs = np.zeros(len(lengths), np.int64), 0
    room = _Stacks()  # packs by (tokens, patches, images) left
    for item in order.tolist():
        need = int(lengths[item]), int(patches[item]), int(images[item])
        for at in range(bisect_left(room.keys, (need[0], 0, 0)), len(room.keys)):
            left = room.keys[at]
            if left[1] >= need[1] and left[2] >= need[2]:
                pack = room.take(left)
                break
        else:
            left, pack = (capacity, patch_capacity, image_capacity), packs
            packs += 1
        pack_of[item] = pack
        if left[0] > need[0]:
            room.put((left[0] - need[0], left[1] - need[1], left[2] - need[2]), pack)
    return pack_of, packs


def group_by_pack(pack: Integers, packs: int) -> tuple[Integers, Integers]:
    """Items by pack, ascending inside each; and where each pack starts, and the end."""
    starts = np.zeros(packs + 1, np.int64)
    np.cumsum(np.bincount(pack, minlength=packs), out=starts[1:])
    return np.argsort(pack, kind="stable"), starts


def order_in_packs(pack: Integers, document: Integers, start: Integers, packs: int) -> tuple[Integers, Integers]:
    """Pieces by pack, document and start; and where each pack starts, and the end."""
    return np.lexsort((start, document, pack)), group_by_pack(pack, packs)[1]


class _Filling:
    """Pieces that change packs, and the store of those that have none."""

    def __init__(self, start: Integers, length: Integers, document: Integers, pack: Integers, min_piece: int) -> None:
        self.document, self.start, self.length, self.pack = (a.tolist() for a in (document, start, length, pack))
        self.min_piece = min_piece
        self.store = _Stacks()  # by (length, 0, 0)

    def set_aside(self, piece: int) -> None:
        self.pack[piece] = -1
        self.store.put((self.length[piece], 0, 0), piece)

    def take(self, length: int, pack: int) -> int:
        piece = self.store.take((length, 0, 0))
        self.pack[piece] = pack
        return piece

    def fill(self, pack: int, hole: int, held: list[int]) -> None:
        held = sorted(held, key=lambda piece: -self.length[piece])
        while hole:
            if self.store.has((hole, 0, 0)):
                self.take(hole, pack)
                return
            for piece in held:
                if self.store.has((self.length[piece] + hole, 0, 0)):
                    self.take(self.length[piece] + hole, pack)
                    self.set_aside(piece)
                    return
            at = bisect_right(self.store.keys, (hole, 0, 0))
            if not at:
                self.cut_to_fit(pack, hole, held)
                return
            whole = self.store.keys[at - 1][0]
            insort(held, self.take(whole, pack), key=lambda piece: -self.length[piece])
            hole -= whole

    def cut_to_fit(self, pack: int, hole: int, held: list[int]) -> None:
        for piece in held:
            if self.cut_for(pack, self.length[piece] + hole):
                self.set_aside(piece)
                return
        self.cut_for(pack, hole)

    def cut_for(self, pack: int, length: int) -> bool:
        at = bisect_left(self.store.keys, (length + self.min_piece, 0, 0))
        if length < self.min_piece or at == len(self.store.keys):
            return False
        piece = self.take(self.store.keys[at][0], pack)
        self.document.append(self.document[piece])
        self.start.append(self.start[piece] + length)
        self.length.append(self.length[piece] - length)
        self.pack.append(-1)
        self.length[piece] = length
        self.set_aside(len(self.pack) - 1)
        return True


def fill_pack_holes(
    document: Integers,
    start: Integers,
    length: Integers,
    splittable: npt.NDArray[np.bool_],
    pack: Integers,
    packs: int,
    capacity: int,
    min_piece: int,
) -> tuple[Integers, Integers, Integers, Integers, int]:
    """Cut and exchange splittable pieces to fill packs: (document, start, length, pack, number of packs)."""
    given = document, start, length, pack, packs
    members: list[list[int]] = [[] for _ in range(packs)]
    holes = [capacity] * packs
    for piece, at in enumerate(pack.tolist()):
        members[at].append(piece)
        holes[at] -= int(length[piece])
    superfluous = sum(holes) // capacity
    filling = _Filling(start, length, document, pack, min_piece)
    by_hole = sorted(range(packs), key=holes.__getitem__)
    for at in reversed(by_hole):
        if superfluous and splittable[members[at]].all():
            for piece in members[at]:
                filling.set_aside(piece)
            holes[at] = 0
            superfluous -= 1
    for at in by_hole:
        if holes[at]:
            filling.fill(at, holes[at], [piece for piece in members[at] if splittable[piece]])

    numbers, packed = np.unique([at for at in filling.pack if at >= 0], return_inverse=True)
    result = np.array(filling.pack, np.int64)
    result[result >= 0] = packed
    rest = [piece for key in reversed(filling.store.keys) for piece in reversed(filling.store.stacks[key])]
    lengths = np.array(filling.length, np.int64)
    of_rest, more = pack_best_fit(lengths[rest], capacity)
    result[rest] = len(numbers) + of_rest
    if len(numbers) + more > packs:
        return given
    pieces = np.array(filling.document, np.int64), np.array(filling.start, np.int64), lengths
    return *pieces, result, len(numbers) + more


def balance_packs(costs: npt.NDArray[np.float64], ranks: int, micro_batches: int, window: int) -> Integers:
    """Packs by step, rank and micro-batch, flat."""
    cost: list[float] = costs.tolist()
    step_packs = ranks * micro_batches
    totals = [0.0] * ranks
    order: list[int] = []
    for first in range(0, len(cost), window * step_packs):
        groups = _deal(cost, range(first, min(first + window * step_packs, len(cost))), micro_batches)
        groups.sort(key=lambda group: -_sum(cost, group))
        steps = [groups[at : at + ranks] for at in range(0, len(groups), ranks)]
        for step in steps:
            _refine(cost, step)
        for step in sorted(steps, key=lambda step: sum(map(sum, step))):
            step.sort(key=lambda group: -_sum(cost, group))
            by_rank: dict[int, list[int]] = {}
            for rank, group in zip(sorted(range(ranks), key=totals.__getitem__), step, strict=True):
                by_rank[rank] = sorted(group)
                totals[rank] += _sum(cost, group)
            for rank in range(ranks):
                order += by_rank[rank]
    return np.array(order, np.int64)


def _sum(cost: list[float], group: list[int]) -> float:
    total = 0.0  # one after another, as the native code adds: `sum` of floats compensates from Python 3.12 on
    for pack in group:
        total += cost[pack]
    return total


def _deal(cost: list[float], packs: range, micro_batches: int) -> list[list[int]]:
    falling = sorted(packs, key=lambda pack: -cost[pack])
    groups: list[list[int]] = [[] for _ in range(len(falling) // micro_batches)]
    turn = list(range(len(groups)))
    for first in range(0, len(falling), len(groups)):
        turn.sort(key=lambda g: _sum(cost, groups[g]))
        for place, g in enumerate(turn):
            groups[g].append(falling[first + place])
    return groups


def _refine(cost: list[float], step: list[list[int]]) -> None:
    sums = [_sum(cost, group) for group in step]
    total = 0.0
    for value in sums:
        total += value
    for _ in range(sum(map(len, step))):
        most = max(range(len(step)), key=sums.__getitem__)
        if sums[most] * len(step) <= total * _CLOSE_ENOUGH:
            return
        best: tuple[int, int, int] | None = None
        least = sums[most]
        for other in range(len(step)):
            if other == most:
                continue
            for i, given in enumerate(step[most]):
                for j, got in enumerate(step[other]):
                    moved = cost[given] - cost[got]
                    after = max(sums[most] - moved, sums[other] + moved)
                    if after < least:
                        least, best = after, (other, i, j)
        if best is None:
            return
        other, i, j = best
        step[most][i], step[other][j] = step[other][j], step[most][i]
        for changed in (most, other):
            sums[changed] = _sum(cost, step[changed])


def order_packs(
    amounts: Integers,
    bases: Integers,
    shares: Integers,
    behind: Integers,
    scale: npt.NDArray[np.float64],
    candidates: int,
    close_enough: float,
) -> tuple[Integers, Integers]:
    """(packs in the order that keeps every source near its share, what each is behind after them); arrays are flat."""
    sources = len(behind)
    given, owed = amounts.reshape(-1, sources) << 32, behind.copy()
    base, share = bases.reshape(-1, sources), shares.reshape(-1, sources)
    order = np.arange(len(given))
    for place in range(len(order)):
        these = order[place:]
        after = owed + share[place] * base[these] - given[these]
        found = (np.abs(after.astype(np.float64)) * scale).max(axis=1)
        close = np.flatnonzero(found[:candidates] <= close_enough)
        chosen = int(close[0]) if len(close) else int(found[:candidates].argmin())
        if found[chosen] > 1.0:  # beyond the candidates the first that stays within a pack
            within = np.flatnonzero(found <= max(1.0, close_enough))
            chosen = int(within[0]) if len(within) else int(found.argmin())
        order[place : place + chosen + 1] = np.roll(order[place : place + chosen + 1], 1)
        owed = after[chosen]
    return order, owed
