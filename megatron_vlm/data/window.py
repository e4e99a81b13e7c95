"""A window of packs: documents drawn by their sources' shares, packed together, in an order that keeps the shares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from megatron_vlm.data.documents import Span
from megatron_vlm.data.mixture import Amounts, Integers, Mixture
from megatron_vlm.data.order import shuffled
from megatron_vlm.data.upcoming import Entries, PackRules, Upcoming
from megatron_vlm.ops.pack_order import WHOLE_SHARE, order_packs
from megatron_vlm.ops.pack_plan import PackPlan, plan_packs
from megatron_vlm.ops.window_rows import EntryColumns, PackedPieces, pack_amounts, window_rows

#: plans of one window until its documents fit; each takes fewer than the one before
_TRIES = 12
#: share of a large window that is left for holes at first
_HOLES = 0.002


@dataclass(frozen=True)
class Draw:
    """What a window takes from one source: `count` whole entries of what comes, and `rest` positions of the next one."""

    entries: Entries
    count: int
    rest: int

    @property
    def pieces(self) -> Entries:
        """What is taken: the entries, and of the next one the positions of `rest`."""
        taken = self.entries.part(0, self.count + (self.rest > 0))
        return replace(taken, length=np.append(taken.length[:-1], self.rest)) if self.rest else taken


@dataclass(frozen=True)
class Window:
    """m packs in the order of training, of s sources.

    Attributes:
        spans: int64[k, 5], source, document, first position, positions, pictures; by pack.
        visual: int64[k, 2], placeholders of a span's pictures and the sum of the squares of each one's.
        starts: int64[m + 1], where each pack begins in `spans`.
        amounts: what each pack gives.
        behind: int64[m + 1, s], what each source is behind its share before each pack and after the last, in its measure and
            parts of WHOLE_SHARE.
        planned_visual: float64[m], planned positions of pictures of each pack.
        draws: what was taken of each source.
        lost, cut: documents left out and shortened, by source.
    """

    spans: Integers
    visual: Integers
    starts: Integers
    amounts: Amounts
    behind: Integers
    planned_visual: np.ndarray
    draws: dict[str, Draw]
    lost: dict[str, int]
    cut: dict[str, int]

    @property
    def packs(self) -> int:
        return len(self.starts) - 1

    def pack(self, number: int) -> tuple[Span, ...]:
        begin, end = int(self.starts[number]), int(self.starts[number + 1])
        rows = zip(self.spans[begin:end].tolist(), self.visual[begin:end].tolist(), strict=True)
        return tuple(Span(*span, *visual) for span, visual in rows)

    def contents(self, begin: int, end: int) -> bytes:
        """Packs `begin` to `end` - 1 as bytes, the same wherever a window was cut: spans, with the number of the pack."""
        rows = self.spans[int(self.starts[begin]) : int(self.starts[end])]
        first = np.zeros(len(rows), np.int64)
        first[self.starts[begin:end] - self.starts[begin]] = 1
        return np.column_stack([first, rows]).astype("<i8").tobytes()


def _nearest(measured: Integers, target: float) -> int:
    """How many entries together come nearest to `target`."""
    upto = np.cumsum(measured)
    return int(np.searchsorted(2 * upto - measured, 2 * target, side="left"))


class WindowPlanner:
    """Draws and packs windows of one stage.

    Args:
        mixture: the stage's shares.
        upcoming: what comes of each source of the run, with the stage's rules set; where it has an end, windows end there.
        rules: of packs.
        seed: the run's.
    """

    def __init__(self, mixture: Mixture, upcoming: Mapping[str, Upcoming], rules: PackRules, seed: int) -> None:
        self.mixture, self.upcoming, self.rules, self.seed = mixture, upcoming, rules, seed

    def plan(self, packs: int, places: np.ndarray, behind: Integers, number: int) -> Window | str:
        """At most `packs` packs, at least one; or the name of a source that has less than its part of a pack left.

        Args:
            packs: the most.
            places: float64[packs], how much of the stage is done before each.
            behind: int64[s], what each source is behind its share, in its measure and parts of WHOLE_SHARE.
            number: of packs before it in the run, for the order of its packs.
        """
        shares = self.mixture.shares_at(places)
        rates = self._rates(shares.mean(axis=0))
        # best fit leaves some holes even to texts that may be cut: a window that fits at once is planned in half the time
        spare = max(1.0, packs * _HOLES) if packs > 16 else 0.0
        filled, first_out = self._reach((packs - spare) * self.rules.capacity, rates, behind)
        if filled < self.rules.capacity:
            return first_out
        for attempt in range(_TRIES):
            draws = self._draw(filled, rates, behind)
            drawn = _joined(draws)
            plan = self._pack(drawn)
            if plan.packs <= packs:
                break
            filled = min(filled * packs / plan.packs, filled - self.rules.capacity * attempt / 2)
        if not 0 < plan.packs <= packs:
            draws = self._one(rates, behind)
            drawn = _joined(draws)
            plan = self._pack(drawn)
        return self._window(plan, draws, drawn, shares, behind, places, number)

    # -- drawing ---------------------------------------------------------------------------------------------------

    def _rates(self, shares: np.ndarray) -> dict[str, float]:
        """What each source owes a filled position, in its measure. Those without pictures share what pictures' leave."""
        mixture = self.mixture
        share = {name: float(shares[mixture.names.index(name)]) / WHOLE_SHARE for name in mixture.active}
        if mixture.measure == "samples":
            mean = sum(share[name] * mixture.mean_positions[name] for name in mixture.active)
            return {name: part / mean for name, part in share.items()}
        rest = 1 - sum(share[name] / mixture.visual_share[name] for name in mixture.visual)
        return {name: part if name in mixture.visual else part * rest for name, part in share.items()}

    def _column(self, name: str) -> str:
        if self.mixture.measure == "samples":
            return "begins"
        return "visual" if name in self.mixture.visual else "length"

    def _owed(self, name: str, behind: Integers) -> float:
        return float(behind[self.mixture.names.index(name)]) / WHOLE_SHARE

    def _entries(self, name: str, target: float) -> Entries:
        """Entries that reach beyond `target` in the source's measure, where there are as many."""
        column, mean = self._column(name), self.mixture.mean_positions[name] / self.mixture.positions_of_one(name)
        if self.mixture.measure == "samples":
            mean = 1.0
        count = max(0, int(target / mean)) + 16
        while True:
            entries = self.upcoming[name].ahead(count)
            if len(entries) < count or int(getattr(entries, column).sum()) > target:
                return entries
            count += count // 2

    def _reach(self, filled: float, rates: Mapping[str, float], behind: Integers) -> tuple[float, str]:
        """How many of `filled` positions all sources can bring their shares of, and the source that ends first."""
        first_out = ""
        for name, rate in rates.items():
            if self.upcoming[name].limit is None or rate <= 0:
                continue
            wanted = rate * filled + self._owed(name, behind)
            left = int(getattr(self._entries(name, wanted), self._column(name)).sum())
            if left < wanted:
                filled, first_out = (left - self._owed(name, behind)) / rate, name
        return filled, first_out

    def _draw(self, filled: float, rates: Mapping[str, float], behind: Integers) -> dict[str, Draw]:
        """Of each source that which brings its share nearest after `filled` positions."""
        mixture = self.mixture
        draws: dict[str, Draw] = {}
        for name in mixture.active if mixture.measure == "samples" else mixture.visual:
            target = rates[name] * filled + self._owed(name, behind)
            entries = self._entries(name, target)
            draws[name] = Draw(entries, _nearest(getattr(entries, self._column(name)), target), 0)
        # what was drawn may have more text, or less, than its documents have on average: the others make up for it
        planned = sum(rates[name] * filled / mixture.visual_share[name] for name in mixture.visual)
        drawn = sum(int(draw.entries.length[: draw.count].sum()) for draw in draws.values())
        rest = (filled - drawn) / (filled - planned) if mixture.visual and filled > planned else 1.0
        for name in mixture.active:
            if name not in draws:
                draws[name] = self._draw_positions(name, rates[name] * filled * max(0.0, rest) + self._owed(name, behind))
        return draws

    def _draw_positions(self, name: str, target: float) -> Draw:
        entries = self._entries(name, target)
        count = _nearest(entries.length, target)
        least = min(self.rules.data.min_piece, max(1, self.rules.capacity // 2))
        # a text longer than a pack is cut where the share ends, so that it does not bring whole packs too many
        before = int(entries.length[:count].sum())
        for at in (count - 1, count):
            if 0 <= at < len(entries) and entries.splittable[at] and entries.length[at] > self.rules.capacity:
                piece = int(target) - (before - int(entries.length[at]) if at < count else before)
                if least <= piece <= int(entries.length[at]) - least:
                    return Draw(entries, at, piece)
        return Draw(entries, count, 0)

    def _one(self, rates: Mapping[str, float], behind: Integers) -> dict[str, Draw]:
        """One document, or a pack's worth of it, of the source that is furthest behind."""

        def need(name: str) -> float:
            return (rates[name] + self._owed(name, behind)) * self.mixture.positions_of_one(name)

        owing = [name for name in self.mixture.active if rates[name] > 0 or self._owed(name, behind) > 0]
        name = max(owing or self.mixture.active, key=need)
        entries = self.upcoming[name].ahead(1)
        long = int(entries.length[0]) > self.rules.capacity
        return {name: Draw(entries, 0 if long else 1, self.rules.capacity if long else 0)}

    # -- packing ---------------------------------------------------------------------------------------------------

    def _pack(self, pieces: Entries) -> PackPlan:
        data = self.rules.data
        limited = data.max_pictures is not None
        return plan_packs(
            pieces.length,
            self.rules.capacity,
            images=pieces.pictures if limited else None,
            image_capacity=data.max_pictures,
            splittable=pieces.splittable,
            long_documents="split",
            fill_holes=data.fill_holes and data.long_documents == "split",
            min_piece=data.min_piece,
        )

    def _window(
        self,
        plan: PackPlan,
        draws: dict[str, Draw],
        drawn: Entries,
        shares: Integers,
        behind: Integers,
        places: np.ndarray,
        number: int,
    ) -> Window:
        names = self.mixture.names
        taken = {name: draw.pieces for name, draw in draws.items()}
        source = np.repeat([names.index(name) for name in taken], [len(pieces) for pieces in taken.values()])
        entries = EntryColumns(
            source, drawn.document, drawn.start, drawn.begins, drawn.visual, drawn.squares, drawn.pictures
        )
        packed = PackedPieces(plan.document, plan.start, plan.length, plan.pack_starts)
        first = shuffled(np.arange(plan.packs, dtype=np.int64), f"{self.seed}:window:{number}")
        amounts = _rows(Amounts(*pack_amounts(packed, entries, len(names))), first)
        capacity = self.rules.capacity
        given, bases, shares = self.mixture.amounts(amounts), self.mixture.bases(amounts), shares[: plan.packs]
        order, _ = order_packs(given, bases, shares, behind, self.mixture.pack_of(capacity))
        amounts, given, bases = _rows(amounts, order), given.take(order, axis=0), bases.take(order, axis=0)
        first = first[order]
        moves = shares * bases - given * WHOLE_SHARE
        kept = np.concatenate([behind[None], behind + np.cumsum(moves, axis=0)])
        spans, visual, starts = window_rows(packed, entries, first)
        one = self.mixture.config.ramp == "constant"
        planned = [self.mixture.planned_visual_share(float(place)) for place in places[: 1 if one else plan.packs]]
        return Window(
            spans=spans,
            visual=visual,
            starts=starts,
            amounts=amounts,
            behind=kept,
            planned_visual=np.array(planned) * amounts.positions.sum(axis=1),
            draws=draws,
            lost={name: int(pieces.lost.sum()) for name, pieces in taken.items()},
            cut={name: int(pieces.cut.sum()) for name, pieces in taken.items()},
        )


def _joined(draws: Mapping[str, Draw]) -> Entries:
    """What all draws take, source by source."""
    return Entries.joined([draw.pieces for draw in draws.values()])


def _rows(amounts: Amounts, order: Integers) -> Amounts:
    return Amounts(*(rows.take(order, axis=0) for rows in (amounts.positions, amounts.visual, amounts.documents)))
