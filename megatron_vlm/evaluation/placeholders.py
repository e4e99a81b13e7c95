"""Documents whose pictures are exchanged for others, which may take another number of placeholders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from megatron_vlm.ops.assemble import Segment


def with_rows(segment: Segment, image_token_id: int, own: Sequence[int], others: Sequence[int]) -> Segment:
    """`segment` with `others[i]` placeholders where its picture number i has `own[i]`; what is learnt of it stays the same.

    Raises:
        ValueError: it has not as many placeholders as `own` says, or there are not as many pictures in both.
    """
    if tuple(own) == tuple(others):
        return segment
    placeholders = np.flatnonzero(segment.ids == image_token_id)
    if len(placeholders) != sum(own) or len(own) != len(others):
        raise ValueError(f"{len(placeholders)} placeholders, of pictures with {own}, cannot become {others}")
    ends = np.cumsum(own)
    begins = placeholders[ends - own]
    behind = begins + own  # the first id after each picture
    counts = np.ones(len(segment.ids), np.int64)
    # the first placeholder of a picture becomes all of the other's
    counts[placeholders] = 0
    counts[begins] = others
    grown = np.subtract(others, own)

    def moved(place: int) -> int:
        return place + int(grown[behind <= place].sum())

    return replace(
        segment,
        ids=np.repeat(segment.ids, counts),
        # the label of a position is the id after it
        loss_from=moved(segment.loss_from + 1) - 1,
        masked=tuple((moved(begin), moved(end)) for begin, end in segment.masked),
    )
