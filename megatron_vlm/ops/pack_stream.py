"""Packs from a stream of documents, planned a window at a time.

Memory is bounded by the window and by what is carried on. The packs are a function of the stream, the window and the rules
alone: not of how the stream is cut into calls. So a number of workers that share packs out (worker w of W takes every pack
whose number modulo W is w) give the same packs whatever W is, and any of them can go on from `PackWindow.state`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from megatron_vlm.ops.pack_pieces import (
    COLUMNS,
    Booleans,
    Documents,
    Integers,
    LongDocuments,
    Losses,
    Packed,
    Pieces,
    Rules,
    as_pieces,
    check_documents,
    place,
    to_pieces,
)
from megatron_vlm.ops.pack_plan import PackPlan, as_plan

# Pieces that wait for a better pack go round at most this often, so that none waits for ever ...
_ROUNDS = 4
# ... and packs that are this full, in thousandths, do not wait.
_FULL_ENOUGH = 998


class Document(NamedTuple):
    """A document of a stream; the fields are as those of `plan_packs` for one document."""

    length: int
    patches: int = 0
    images: int = 0
    splittable: bool | None = None
    picture_end: int = 0


class PackWindow:
    """Takes documents in order, and gives packs a window of documents at a time.

    From a window the emptiest packs are held back, and their pieces are planned anew with the next window: at most
    `window // 4` pieces, none from packs that are 99.8 % full or hold a piece that was held back four times.

    Args:
        capacity: as of `plan_packs`, and so are all others but `window`.
        window: documents that are planned together, those held back not counted.

    Raises:
        ValueError: as of `plan_packs`, and where `window` is below 1.
    """

    def __init__(
        self,
        capacity: int,
        *,
        window: int = 10_000,
        patch_capacity: int | None = None,
        image_capacity: int | None = None,
        long_documents: LongDocuments = "split",
        fill_holes: bool = False,
        min_piece: int = 16,
    ) -> None:
        if window < 1:
            raise ValueError(f"window is {window}, but must be at least 1 document")
        self.rules = Rules(capacity, patch_capacity, image_capacity, long_documents, fill_holes, min_piece)
        self.window = window
        self._planned = 0  # documents of the stream before those that wait
        self._waiting = _no_documents()
        self._held = _no_pieces()
        self._rounds = np.zeros(0, np.int64)  # of each piece held back

    def add(
        self,
        lengths: Integers,
        *,
        patches: Integers | None = None,
        images: Integers | None = None,
        splittable: Booleans | None = None,
        picture_end: Integers | None = None,
    ) -> list[PackPlan]:
        """Take the next documents of the stream, any number, and return a plan for each window that they complete.

        The arguments are those of `plan_packs`. In the plans documents are numbered from the start of the stream; losses
        are those of the window.

        Raises:
            ValueError: as `plan_packs`; document numbers in its message are of this call. Nothing was taken then.
        """
        rules = self.rules
        more = _columns(check_documents(lengths, patches, images, splittable, picture_end, rules))
        self._waiting = np.concatenate([self._waiting, more], axis=1)
        plans = []
        while self._waiting.shape[1] >= self.window:
            plans.append(self._plan(self.window, last=False))
        return plans

    def finish(self) -> PackPlan:
        """Plan all that is left, and hold nothing back. The window can be used for another stream then."""
        plan = self._plan(self._waiting.shape[1], last=True)
        self._planned = 0
        return plan

    def state(self) -> dict[str, Any]:
        """What `load` needs to go on from here, as plain numbers and lists: at most a window and a quarter of it."""
        return {
            "planned": self._planned,
            "waiting": self._waiting.tolist(),
            "held": [getattr(self._held, name).tolist() for name in COLUMNS],
            "rounds": self._rounds.tolist(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken, of a window with the same arguments."""
        self._planned = int(state["planned"])
        self._waiting = np.array(state["waiting"], np.int64).reshape(5, -1)
        types = [np.bool_ if name == "splittable" else np.int64 for name in COLUMNS]
        self._held = as_pieces(np.array(a, t) for a, t in zip(state["held"], types, strict=True))
        self._rounds = np.array(state["rounds"], np.int64)

    def _plan(self, count: int, last: bool) -> PackPlan:
        columns, self._waiting = self._waiting[:, :count], self._waiting[:, count:].copy()
        documents = Documents(columns[0], columns[1], columns[2], columns[3].astype(np.bool_), columns[4])
        pieces, losses = to_pieces(documents, self.rules)
        numbered = replace(pieces, document=pieces.document + self._planned, untouched=False)
        packed = place(self._held.followed_by(numbered), self.rules)
        self._planned += count
        return self._release(packed, losses, last)

    def _release(self, packed: Packed, losses: Losses, last: bool) -> PackPlan:
        pieces, starts = packed.in_order(), packed.starts
        sizes = np.diff(starts)
        released = np.ones(len(sizes), np.bool_)
        rounds = np.zeros(len(pieces.document), np.int64)
        if not last and len(sizes):
            # A piece counts as held back as often as any of its document was: cutting and joining make new pieces.
            order = np.argsort(self._held.document, kind="stable")
            documents, first = np.unique(self._held.document[order], return_index=True)
            at = np.searchsorted(documents, pieces.document)
            known = np.zeros(len(rounds), np.bool_)
            known[at < len(documents)] = documents[at[at < len(documents)]] == pieces.document[at < len(documents)]
            if len(documents):
                rounds[known] = np.maximum.reduceat(self._rounds[order], first)[at[known]]
            fill = np.add.reduceat(pieces.length, starts[:-1])
            may_wait = (fill * 1000 < self.rules.capacity * _FULL_ENOUGH) & (
                np.maximum.reduceat(rounds, starts[:-1]) < _ROUNDS
            )
            emptiest = np.argsort(fill, kind="stable")
            emptiest = emptiest[may_wait[emptiest]]
            released[emptiest[np.cumsum(sizes[emptiest]) <= self.window // 4]] = False
        kept = np.repeat(released, sizes)
        order = np.lexsort((pieces.start, pieces.document))
        order = order[~kept[order]]
        self._held, self._rounds = pieces.take(order), rounds[order] + 1
        new_starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes[released])])
        return as_plan(Packed(pieces.take(kept), None, new_starts), self.rules, losses)


def plan_stream(
    documents: Iterable[int | Document],
    capacity: int,
    *,
    window: int = 10_000,
    patch_capacity: int | None = None,
    image_capacity: int | None = None,
    long_documents: LongDocuments = "split",
    fill_holes: bool = False,
    min_piece: int = 16,
) -> Iterator[PackPlan]:
    """Yield a plan for each window of the stream, and one for what is left at its end, whether there is any or not.

    `documents` are lengths, or `Document`s where more than that is known. All else is as in `PackWindow`.

    Raises:
        ValueError: as `PackWindow` and `plan_packs`, when the stream has come that far.
    """
    packs = PackWindow(
        capacity,
        window=window,
        patch_capacity=patch_capacity,
        image_capacity=image_capacity,
        long_documents=long_documents,
        fill_holes=fill_holes,
        min_piece=min_piece,
    )
    stream = iter(documents)
    while chunk := [Document(d) if isinstance(d, int) else d for d in islice(stream, window)]:
        yield from packs.add(
            _integers(d.length for d in chunk),
            patches=_integers(d.patches for d in chunk),
            images=_integers(d.images for d in chunk),
            splittable=np.array([not (d.patches or d.images) if d.splittable is None else d.splittable for d in chunk]),
            picture_end=_integers(d.picture_end for d in chunk),
        )
    yield packs.finish()


def _integers(values: Iterable[int]) -> Integers:
    return np.array(list(values), np.int64)


def _columns(documents: Documents) -> Integers:
    """int64[5, n], one row a field, so that waiting documents are one array."""
    return np.stack([getattr(documents, name).astype(np.int64, copy=False) for name in Documents.__slots__])


def _no_documents() -> Integers:
    return np.zeros((len(Documents.__slots__), 0), np.int64)


def _no_pieces() -> Pieces:
    none = np.zeros(0, np.int64)
    return Pieces(none, none, none, none, none, none.astype(np.bool_))
