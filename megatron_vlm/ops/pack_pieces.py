"""Documents, whole or in pieces, on their way into packs.

Checks and the handling of over-long documents are here, in numpy and once; placing is native, or the reference's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from megatron_vlm.ops import pack_plan_reference
from megatron_vlm.ops.native import native_operators

Integers = npt.NDArray[np.int64]
Booleans = npt.NDArray[np.bool_]

#: what becomes of a document that is longer than a pack
LongDocuments = Literal["split", "truncate", "drop"]

# The search for room takes a few bytes for every position of a pack.
_MOST_POSITIONS = 2**26


@dataclass(frozen=True, slots=True)
class Rules:
    """What a pack may hold and what may be done to documents; the arguments of `plan_packs` by the same names."""

    capacity: int
    patch_capacity: int | None = None
    image_capacity: int | None = None
    long_documents: LongDocuments = "split"
    fill_holes: bool = False
    min_piece: int = 16

    def __post_init__(self) -> None:
        if not 1 <= self.capacity <= _MOST_POSITIONS:
            raise ValueError(f"capacity is {self.capacity}, but must be 1 to {_MOST_POSITIONS} positions")
        for name in ("patch_capacity", "image_capacity"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ValueError(f"{name} is {value}, but must not be negative")
        if self.long_documents not in get_args(LongDocuments):
            raise ValueError(f"long_documents is {self.long_documents!r}, but must be one of {get_args(LongDocuments)}")
        if self.min_piece < 1:
            raise ValueError(f"min_piece is {self.min_piece}, but must be at least 1")

    @property
    def shortest_cut(self) -> int:
        """`min_piece`, but at most half a pack, so that two pieces always fit one."""
        return max(1, min(self.min_piece, self.capacity // 2))


@dataclass(frozen=True, slots=True, eq=False)
class Documents:
    """Checked documents: int64[n] each, but bool[n] for `splittable`.

    `picture_end` is where a document's last picture ends, 0 where truncating may cut anywhere.
    """

    lengths: Integers
    patches: Integers
    images: Integers
    splittable: Booleans
    picture_end: Integers


@dataclass(frozen=True, slots=True, eq=False)
class Pieces:
    """Documents or parts of them: int64[k] each, but bool[k] for `splittable`. A part holds no picture."""

    document: Integers
    start: Integers
    length: Integers
    patches: Integers
    images: Integers
    splittable: Booleans


@dataclass(frozen=True, slots=True)
class Losses:
    """Documents, and positions of them, that no pack holds. The fields are those of `PackPlan`."""

    truncated: int = 0
    dropped_long: int = 0
    dropped_vision: int = 0
    dropped_empty: int = 0
    lost_positions: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Packed:
    """Pieces by pack, inside a pack by document and start; int64[k] each.

    Pack p holds pieces starts[p] up to starts[p + 1] - 1; `starts` is int64[packs + 1].
    """

    document: Integers
    start: Integers
    length: Integers
    starts: Integers


def check_documents(
    lengths: Integers,
    patches: Integers | None,
    images: Integers | None,
    splittable: Booleans | None,
    picture_end: Integers | None,
    rules: Rules,
) -> Documents:
    """Check arrays that a user gave, and fill in those that are None."""
    _check_array("lengths", lengths, np.int64, None)
    count = len(lengths)
    for name, budget, given in (("patches", "patch_capacity", patches), ("images", "image_capacity", images)):
        if given is None and getattr(rules, budget) is not None:
            raise ValueError(f"{budget} is given, but {name} are not")
        if given is not None:
            _check_array(name, given, np.int64, count)
    if picture_end is not None:
        _check_array("picture_end", picture_end, np.int64, count)
    pictured = np.zeros(count, np.bool_)
    for held in (patches, images):
        if held is not None:
            pictured |= held > 0
    if splittable is None:
        splittable = ~pictured
    else:
        _check_array("splittable", splittable, np.bool_, count)
        wrong = splittable & pictured
        if wrong.any():
            raise ValueError(f"document {int(wrong.argmax())} is splittable, but holds pictures, and no cut may part those")
    nothing = np.zeros(count, np.int64)

    def filled(given: Integers | None) -> Integers:
        return nothing if given is None else np.ascontiguousarray(given)

    return Documents(filled(lengths), filled(patches), filled(images), np.ascontiguousarray(splittable), filled(picture_end))


def _check_array(name: str, array: object, dtype: type[np.generic], count: int | None) -> None:
    if not isinstance(array, np.ndarray) or array.dtype != dtype or array.ndim != 1:
        found = f"{array.dtype}{list(array.shape)}" if isinstance(array, np.ndarray) else type(array).__name__
        raise ValueError(f"{name} must be a {np.dtype(dtype)} array of one dimension, not {found}")
    if count is not None and len(array) != count:
        raise ValueError(f"{name} has {len(array)} elements, but lengths has {count}")
    if dtype is np.int64 and len(array) and array.min() < 0:
        where = int(array.argmin())
        raise ValueError(f"{name} must not be negative, but of document {where} it is {array[where]}")


def to_pieces(documents: Documents, rules: Rules) -> tuple[Pieces, Losses]:
    """Split, truncate or drop what no pack could hold, so that every piece fits an empty pack.

    A piece left over from splitting is not shorter than `rules.shortest_cut`: the piece before it gives what is missing.
    """
    lengths, count = documents.lengths, len(documents.lengths)
    everything = np.arange(count)
    vision = np.zeros(count, np.bool_)
    for held, most in ((documents.patches, rules.patch_capacity), (documents.images, rules.image_capacity)):
        if most is not None:
            vision |= held > most
    whole = Pieces(everything, np.zeros(count, np.int64), lengths, documents.patches, documents.images, documents.splittable)
    if not count or (lengths.min() >= 1 and lengths.max() <= rules.capacity and not vision.any()):
        return whole, Losses()

    empty = lengths == 0
    vision &= ~empty
    long = (lengths > rules.capacity) & ~vision
    split = long & documents.splittable & (rules.long_documents == "split")
    truncate = long & (documents.picture_end <= rules.capacity) & (rules.long_documents == "truncate")
    parts = np.where(split, -(-lengths // rules.capacity), 1)
    parts[empty | vision | (long & ~split & ~truncate)] = 0

    document = np.repeat(everything, parts)
    start = np.zeros(len(document), np.int64)
    cut = np.flatnonzero(parts > 1)  # few: only they need to be told which part is which
    first = (np.cumsum(parts) - parts)[cut]
    others = parts[cut] - 1
    number = np.arange(1, 1 + int(others.sum())) - np.repeat(np.cumsum(others) - others, others)
    later = np.repeat(first, others) + number
    start[later] = number * rules.capacity
    length = np.minimum(lengths[document] - start, rules.capacity)
    scraps = later[length[later] < rules.shortest_cut]
    missing = rules.shortest_cut - length[scraps]
    start[scraps] -= missing
    length[scraps] += missing
    length[scraps - 1] -= missing
    losses = Losses(
        truncated=int(truncate.sum()),
        dropped_long=int((long & ~split & ~truncate).sum()),
        dropped_vision=int(vision.sum()),
        dropped_empty=int(empty.sum()),
        lost_positions=int(lengths.sum() - length.sum()),
    )
    patches, images, splittable = documents.patches[document], documents.images[document], documents.splittable[document]
    return Pieces(document, start, length, patches, images, splittable), losses


def place(pieces: Pieces, rules: Rules) -> Packed:
    """Put pieces that fit an empty pack, in ascending order of document and start, into packs."""
    operators = native_operators() or pack_plan_reference
    if rules.patch_capacity is None and rules.image_capacity is None:
        pack, packs = operators.pack_best_fit(pieces.length, rules.capacity)
    else:
        # A budget of none is one that nothing uses.
        nothing = np.zeros(len(pieces.length), np.int64)
        patches = nothing if rules.patch_capacity is None else pieces.patches
        images = nothing if rules.image_capacity is None else pieces.images
        most = rules.capacity, rules.patch_capacity or 0, rules.image_capacity or 0
        held = pieces.length, patches, images
        share = np.max([used / max(1, capacity) for used, capacity in zip(held, most, strict=True)], axis=0, initial=0)
        order = np.lexsort((-pieces.length, -share)).astype(np.int64, copy=False)
        pack, packs = operators.pack_within_budgets(*held, order, *most)
    if rules.fill_holes:
        return _fill(pieces, pack, packs, rules)
    order, starts = operators.group_by_pack(pack, packs)
    return Packed(pieces.document[order], pieces.start[order], pieces.length[order], starts)


def _fill(pieces: Pieces, pack: Integers, packs: int, rules: Rules) -> Packed:
    operators = native_operators() or pack_plan_reference
    document, start, length, pack, packs = operators.fill_pack_holes(
        pieces.document, pieces.start, pieces.length, pieces.splittable, pack, packs, rules.capacity, rules.shortest_cut
    )
    order, starts = operators.order_in_packs(pack, document, start, packs)
    document, start, length = document[order], start[order], length[order]
    # Pieces of one document that follow each other in one pack are one piece again.
    joined = np.zeros(len(order), np.bool_)
    joined[1:] = (document[1:] == document[:-1]) & (start[1:] == start[:-1] + length[:-1])
    joined[starts[:-1]] = False
    if joined.any():
        first = np.flatnonzero(~joined)
        document, start, length = document[first], start[first], np.add.reduceat(length, first)
        starts = np.searchsorted(first, starts).astype(np.int64, copy=False)
    return Packed(document, start, length, starts)
