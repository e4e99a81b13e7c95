"""The next documents of one source, in the order of its epochs, cut to what packs take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from megatron_vlm.config.data import DataConfig
from megatron_vlm.config.picture_rows import PictureRows
from megatron_vlm.data.documents import DocumentSource
from megatron_vlm.data.order import DocumentOrder
from megatron_vlm.errors import DataError

Integers = npt.NDArray[np.int64]
#: [document, first position, positions]
Piece = tuple[int, int, int]
_CHUNK = 1024  # places of the order that are looked up together, at least


class Standing(NamedTuple):
    """A place in a source: documents passed since the run began, positions used of the next, and pieces before those."""

    passed: int
    offset: int
    carried: list[Piece]


@dataclass(frozen=True)
class PackRules:
    """What decides how a document goes into packs of a stage: sizes of a pack and of a picture, and data's rules."""

    capacity: int
    image_tokens: int | PictureRows
    data: DataConfig


@dataclass
class Entries:
    """n pieces that can be packed, int64[n] each.

    `visual` is the number of placeholders of its pictures and `squares` the sum of the squares of each one's;
    `place` is the place in the order after the piece's document, counted over all epochs; `splittable` texts may be cut
    anywhere; `lost` and `cut` say how many documents before this one, back to the entry before, were left out, and whether
    this one is shortened.
    """

    document: Integers
    start: Integers
    length: Integers
    visual: Integers
    squares: Integers
    pictures: Integers
    begins: Integers
    place: Integers
    splittable: npt.NDArray[np.bool_]
    lost: Integers
    cut: Integers

    def __len__(self) -> int:
        return len(self.document)

    def part(self, begin: int, end: int | None) -> Entries:
        return Entries(*(column[begin:end] for column in vars(self).values()))

    @staticmethod
    def joined(parts: Sequence[Entries]) -> Entries:
        return Entries(*(np.concatenate(columns) for columns in zip(*(vars(part).values() for part in parts), strict=True)))


def _none() -> Entries:
    zero = np.zeros(0, np.int64)
    return Entries(zero, zero, zero, zero, zero, zero, zero, zero, zero.astype(np.bool_), zero, zero)


class Upcoming:
    """A place in a source's documents, and what comes after it.

    Args:
        source, seed: whose documents, and the run's seed.
        most_epochs: passes after which nothing comes any more; None for no end.
    """

    def __init__(self, source: DocumentSource, seed: int, most_epochs: float | None = None) -> None:
        self.source = source
        self.count = source.reader.document_count
        self.order = DocumentOrder(self.count, seed, source.name)
        self.limit = None if most_epochs is None else round(most_epochs * self.count)
        #: documents passed since the run began, and positions of the next one that are used already
        self.passed = self.offset = 0
        #: pieces that come before those of the order: what a plan that was given up had drawn
        self.carried: list[Piece] = []
        self._rules: PackRules | None = None
        self._entries = _none()
        self._looked = 0  # places up to here are in the entries
        self._lost = 0  # documents left out after the last entry

    @property
    def epochs(self) -> float:
        return self.passed / self.count

    def set_rules(self, rules: PackRules) -> None:
        """Look at what comes by other rules; nothing that is there already is lost."""
        if self._rules != rules:
            self._rules = rules
            self._restart()

    @property
    def rules(self) -> PackRules:
        assert self._rules is not None, "rules are set before anything is looked at"
        return self._rules

    def move(self, passed: int, offset: int, carried: Sequence[Piece]) -> None:
        self.passed, self.offset, self.carried = passed, offset, list(carried)
        if self._rules is not None:
            self._restart()

    def _restart(self) -> None:
        self._looked, self._entries, self._lost = self.passed, _none(), 0
        if self.carried:
            document, start, length = np.array(self.carried, np.int64).T
            entries = self._entries = self._entries_of(document, np.full(len(document), self.passed), start, length)
            self._lost = 0
            self.carried = list(zip(*(c.tolist() for c in (entries.document, entries.start, entries.length)), strict=True))

    def ahead(self, count: int) -> Entries:
        """At least `count` pieces where there are as many."""
        while len(self._entries) < count and self._look(count - len(self._entries)):
            pass
        return self._entries

    def _look(self, wanted: int) -> bool:
        """Bring more places into the entries; False where there are none."""
        start = self._looked
        stop = start + max(_CHUNK, wanted)
        if self.limit is not None:
            stop = min(stop, self.limit)
        epoch, place = divmod(start, self.count)
        stop = min(stop, (epoch + 1) * self.count)
        if stop <= start:
            return False
        documents = self.order.take(epoch, place, stop - epoch * self.count)
        offsets = np.zeros(len(documents), np.int64)
        if start == self.passed:
            offsets[0] = self.offset
        found = self._entries_of(documents, np.arange(start + 1, stop + 1), offsets, None)
        self._looked = stop
        self._entries = Entries.joined([self._entries, found])
        if not len(self._entries) and stop - self.passed >= 2 * self.count:
            raise DataError(
                f"{self.source.reader.prefix}: no document fits a pack of {self.rules.capacity} positions; "
                f"raise data.sequence_length or set data.long_documents to split"
            )
        return True

    def _entries_of(self, document: Integers, place: Integers, start: Integers, length: Integers | None) -> Entries:
        """Those of the documents that have anything for a pack. `length` None: all that comes after `start`."""
        rules, data = self.rules, self.rules.data
        known = self.source.lengths(document, rules.image_tokens)
        shows = known.pictures > 0
        left = known.positions - start
        if length is not None:  # a document with pictures is taken whole, a text only where it was not used yet
            left = np.where(shows, known.positions, np.minimum(length, left))
            start = np.where(shows, 0, start)
        too_long = left > rules.capacity
        keep = left >= 1
        short = known.positions < 1
        if data.long_documents == "drop":
            keep &= ~too_long
        keep &= ~(shows & (known.picture_end > rules.capacity))
        if data.max_pictures is not None:
            keep &= known.pictures <= data.max_pictures
        splittable = ~shows if data.long_documents == "split" else np.zeros(len(document), np.bool_)
        cut = too_long & ~splittable
        size = np.where(cut, rules.capacity, left)
        dropped = np.cumsum(~keep & ~short) + self._lost
        lost = np.diff(dropped[keep], prepend=0)
        self._lost = int(dropped[-1] - lost.sum()) if len(dropped) else 0
        return Entries(
            document[keep],
            start[keep],
            size[keep],
            known.rows[keep],
            known.squares[keep],
            known.pictures[keep],
            (start == 0).astype(np.int64)[keep],
            place[keep],
            splittable[keep],
            lost,
            cut.astype(np.int64)[keep],
        )

    def after(self, count: int, rest: int) -> Standing:
        """Where the source stands when `count` entries are used, and `rest` positions of the one after them."""
        carried = self.carried[count:]
        passed, offset = self.passed, self.offset
        if count > len(self.carried):
            passed, offset = int(self._entries.place[count - 1]), 0
        if rest and carried:
            document, start, length = carried[0]
            carried[0] = (document, start + rest, length - rest)
        elif rest:
            passed, offset = int(self._entries.place[count]) - 1, int(self._entries.start[count]) + rest
        return Standing(passed, offset, carried)

    def consume(self, count: int, rest: int) -> None:
        """`count` entries are used, and `rest` positions of the one after them."""
        self.passed, self.offset, self.carried = self.after(count, rest)
        self._entries = self._entries.part(count, None)
        if rest:
            entries = self._entries = Entries(*(column.copy() for column in vars(self._entries).values()))
            entries.start[0] += rest
            entries.length[0] -= rest
            entries.begins[0] = 0
            entries.lost[0] = 0
