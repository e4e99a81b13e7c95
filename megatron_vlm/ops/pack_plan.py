"""Which documents, or pieces of documents, share a pack.

Whole documents are placed by best-fit decreasing, which needs at most 11/9 of the least possible number of packs and a
small constant more (D. S. Johnson, "Near-optimal bin packing algorithms", 1973), and on documents' lengths hardly more
than the least: `lower_bound` tells. With budgets for vision beside the one for tokens it becomes vector packing, by the
same rule. Cutting texts can do away with what is left.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from megatron_vlm.ops.pack_pieces import (
    Booleans,
    Integers,
    LongDocuments,
    Losses,
    Packed,
    Rules,
    check_documents,
    place,
    to_pieces,
)


@dataclass(frozen=True, slots=True, eq=False)
class PackPlan:
    """k pieces of documents in m packs. A piece is a whole document unless that was cut.

    Attributes:
        document: int64[k], which document the piece is of.
        start: int64[k], the document's first position in the piece; 0 for a whole document.
        length: int64[k], positions of the piece, at least 1.
        pack_starts: int64[m + 1], ascending from 0 to k: pack p holds the pieces pack_starts[p] up to
            pack_starts[p + 1], at least one, by document and start.
        capacity: positions of a pack.
        truncated: over-long documents of which the first `capacity` positions were placed.
        dropped_long: over-long documents that were not placed.
        dropped_vision: documents not placed because they alone exceed the budget of patches or images.
        dropped_empty: documents without positions.
        lost_positions: positions of truncated and dropped documents that no pack holds.
    """

    document: Integers
    start: Integers
    length: Integers
    pack_starts: Integers
    capacity: int
    truncated: int
    dropped_long: int
    dropped_vision: int
    dropped_empty: int
    lost_positions: int

    @property
    def packs(self) -> int:
        """How many there are, m."""
        return len(self.pack_starts) - 1

    @property
    def waste(self) -> int:
        """Positions of all packs that hold nothing and will be padded."""
        return self.packs * self.capacity - int(self.length.sum())

    @property
    def cut(self) -> int:
        """Documents of which a piece starts elsewhere than at their first position."""
        return len(np.unique(self.document[self.start > 0]))


def plan_packs(
    lengths: Integers,
    capacity: int,
    *,
    patches: Integers | None = None,
    images: Integers | None = None,
    patch_capacity: int | None = None,
    image_capacity: int | None = None,
    splittable: Booleans | None = None,
    picture_end: Integers | None = None,
    long_documents: LongDocuments = "split",
    fill_holes: bool = False,
    min_piece: int = 16,
) -> PackPlan:
    """Place n documents into as few packs as it can, never more into one than it may hold.

    The result is a function of the arguments alone, with the native operators and without. Best-fit decreasing takes
    O(n log capacity); with budgets for vision it takes O(n log n). Without cutting, and with the budget of tokens alone,
    the order of the documents changes neither the number of packs nor how full they are.

    Packs are numbered as they are opened, so those with the longest documents come first: shuffle them before training.

    Args:
        lengths: int64[n], positions of each document. Documents without any are left out and counted.
        capacity: positions of a pack.
        patches: int64[n], vision patches of each document; None where there are none.
        images: int64[n], pictures of each document; None where there are none.
        patch_capacity: the most patches of a pack; None for no limit. A document with more is left out and counted.
        image_capacity: the most pictures of a pack, likewise.
        splittable: bool[n], documents that may be cut anywhere; None for all without patches and images.
        picture_end: int64[n], the position after the last picture. A document that has it beyond `capacity` is left
            out rather than truncated. None truncates without regard to pictures.
        long_documents: what becomes of documents longer than `capacity`. "split": those that are splittable are cut
            into packs' lengths and a rest, the others are left out. "truncate": all keep their first `capacity`
            positions. "drop": all are left out.
        fill_holes: cut more splittable documents and exchange them between packs until next to nothing is wasted. Few
            are cut: mostly an exchange with a whole document fits exactly.
        min_piece: no cut makes a piece shorter than this many positions, or than half of `capacity` where that is less.

    Raises:
        ValueError: naming the argument and the document, where an array has another dtype, shape or length or a
            negative element, where a document with patches or images is splittable, where a budget comes without its
            array, and where `capacity` is not in 1 to 2^26, a budget is negative, or `min_piece` is below 1.
    """
    rules = Rules(capacity, patch_capacity, image_capacity, long_documents, fill_holes, min_piece)
    documents = check_documents(lengths, patches, images, splittable, picture_end, rules)
    pieces, losses = to_pieces(documents, rules)
    return as_plan(place(pieces, rules), rules, losses)


def as_plan(packed: Packed, rules: Rules, losses: Losses) -> PackPlan:
    """Bring together what planning gave."""
    return PackPlan(
        document=packed.document,
        start=packed.start,
        length=packed.length,
        pack_starts=packed.starts,
        capacity=rules.capacity,
        truncated=losses.truncated,
        dropped_long=losses.dropped_long,
        dropped_vision=losses.dropped_vision,
        dropped_empty=losses.dropped_empty,
        lost_positions=losses.lost_positions,
    )


def lower_bound(lengths: Integers, capacity: int) -> int:
    """Return a number of packs that no way of placing whole documents can do with fewer of.

    The bound L2 of S. Martello and P. Toth ("Knapsack Problems", 1990, section 8.3): whatever the threshold, documents
    longer than half a pack need a pack each, and those from the threshold on share only what is left in packs whose long
    document leaves that much. It is the greatest over all thresholds, in O(n + capacity).

    Args:
        lengths: int64[n], each 0 to `capacity`.
        capacity: positions of a pack.

    Raises:
        ValueError: where `lengths` is no such array or `capacity` is not in 1 to 2^26.
    """
    rules = Rules(capacity)
    check_documents(lengths, None, None, None, None, rules)
    if len(lengths) and lengths.max() > capacity:
        raise ValueError(f"document {int(lengths.argmax())} has {lengths.max()} positions, more than capacity {capacity}")
    count = np.bincount(lengths, minlength=capacity + 1)
    number = _upto(count)
    positions = _upto(count * np.arange(capacity + 1))
    half = capacity // 2
    threshold = np.arange(1, half + 1) if half else np.ones(1, np.int64)
    alone = number[-1] - number[capacity - threshold + 1]
    paired = number[capacity - threshold + 1] - number[half + 1]
    room = paired * capacity - (positions[capacity - threshold + 1] - positions[half + 1])
    sharing = positions[half + 1] - positions[np.minimum(threshold, half + 1)]
    return int((alone + paired + np.maximum(0, -((room - sharing) // capacity))).max())


def _upto(values: npt.NDArray[np.int64]) -> Integers:
    """Element i is the sum of the values before i."""
    sums = np.zeros(len(values) + 1, np.int64)
    np.cumsum(values, out=sums[1:])
    return sums
