"""Documents laid into rows for scoring: what begins alike is laid once, and logits are made where something is scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from megatron_vlm.config.data import TokenCounts
from megatron_vlm.config.steps import StepShape
from megatron_vlm.data.micro_batch import MicroBatch, make_micro_batch
from megatron_vlm.models.scored_row import ScoredRow
from megatron_vlm.ops.assemble import MODALITY_NONE, Segment
from megatron_vlm.ops.pack_plan import plan_packs

_Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Scored:
    """A document to score: its ids (`loss_from` marks where the answer begins) and its pictures, uint8 `[height, width, 3]`.

    Pictures are needed on ranks of the first pipeline stage, and, where they keep their aspect, on all (`needs_pictures`).
    Neighbours of one `family` show the same pictures. What their ids have in common at the beginning is read once for all of
    them where the layout can (answers to one question), which changes nothing but the time; None: alone.
    """

    segment: Segment
    pictures: tuple[npt.NDArray[np.uint8], ...] = ()
    family: int | None = None


@dataclass(frozen=True)
class Family:
    """Documents by number that have their first `shared` positions in common, and how many positions they take together."""

    documents: tuple[int, ...]
    shared: int
    positions: int


def learnt(segment: Segment, image_token_id: int) -> npt.NDArray[np.bool_]:
    """Whether each position's label counts, as `ops.assemble` has it: bool[n]."""
    following = segment.ids[1:]
    offsets = np.arange(len(following))
    found = (offsets >= segment.loss_from) & (following != image_token_id) & (segment.modality != MODALITY_NONE)
    for begin, stop in segment.masked:
        found &= (offsets + 1 < begin) | (offsets + 1 >= stop)
    return np.asarray(found)


def families(documents: Sequence[Scored], capacity: int, image_token_id: int, share: bool) -> list[Family]:
    """Every document in one family, in order; alone where there is nothing to share, or not `share`.

    A family takes at most `capacity` positions: a larger one is several, each of which has the beginning.

    Raises:
        ValueError: a document of more positions than that.
    """
    found: list[Family] = []
    at = 0
    while at < len(documents):
        end = at + 1
        if share and documents[at].family is not None:
            while end < len(documents) and documents[end].family == documents[at].family:
                end += 1
        found += _family(documents, range(at, end), capacity, image_token_id)
        at = end
    return found


def _family(documents: Sequence[Scored], numbers: range, capacity: int, image_token_id: int) -> list[Family]:
    lengths = {number: len(documents[number].segment.ids) - 1 for number in numbers}
    for number, length in lengths.items():
        if length > capacity:
            raise ValueError(f"document {number} has {length} positions, a row {capacity}")
    shared = _common([documents[number].segment.ids[:-1] for number in numbers])
    first = documents[numbers[0]].segment.ids
    if len(numbers) == 1 or shared == 0 or any(
        (documents[number].segment.ids[shared:] == image_token_id).any() for number in numbers
    ):  # fmt: skip
        return [Family((number,), lengths[number], lengths[number]) for number in numbers]
    assert len(first) > shared
    found, members, size = [], list[int](), shared
    for number in numbers:
        tail = lengths[number] - shared
        if members and size + tail > capacity:
            found.append(Family(tuple(members), shared, size))
            members, size = [], shared
        members.append(number)
        size += tail
    return [*found, Family(tuple(members), shared, size)]


def _common(sequences: Sequence[npt.NDArray[np.int32]]) -> int:
    """How many ids all of them begin with alike."""
    length = min(map(len, sequences))
    for one, other in pairwise(sequences):
        unlike = np.flatnonzero(one[:length] != other[:length])
        length = int(unlike[0]) if len(unlike) else length
    return length


def lay_rows(found: Sequence[Family], capacity: int) -> list[list[Family]]:
    """Families into as few rows of at most `capacity` positions as best fit takes."""
    plan = plan_packs(np.array([family.positions for family in found], np.int64), capacity)
    borders = zip(plan.pack_starts[:-1], plan.pack_starts[1:], strict=True)
    return [[found[number] for number in plan.document[begin:end].tolist()] for begin, end in borders]


@dataclass(frozen=True)
class ScoringBatch:
    """A micro-batch to score.

    Attributes:
        tokens, row_index, position_ids, pixels, image_tokens: as of `MicroBatch`.
        row: what the model attends to, and the places of its logits.
        labels: int64 `[1, n]`, of each scored place.
        owner: int64 `[m]`, m <= n: the document of each; places after these fill the last rank's part and count for none.
    """

    micro_batch: MicroBatch
    row: ScoredRow
    position_ids: Tensor
    labels: Tensor
    owner: Tensor


def scoring_batch(
    rows: Sequence[Sequence[Family]],
    documents: Sequence[Scored],
    shape: StepShape,
    tokens: TokenCounts,
    *,
    packs: int,
    pictures: bool,
    multiple: int,
    device: torch.device,
    by_places: bool,
) -> ScoringBatch:
    """Rows end to end as one micro-batch.

    Args:
        packs: rows of it; those that are missing are padding.
        pictures: whether this rank holds the encoder.
        multiple: of which the number of scored places must be one.
        by_places: attention by `ScoredRow.documents`, which families of more than one document need.
    """
    ids = [document.segment for document in documents]
    segments: list[list[Segment]] = [[] for _ in range(packs)]
    shown: list[npt.NDArray[np.uint8]] = []
    attending: list[_Ints] = []
    scored: list[tuple[_Ints, npt.NDArray[np.int32], _Ints]] = []
    for number, row in enumerate(rows):
        at = number * shape.sequence_length
        for family in row:
            shared, first = family.shared, documents[family.documents[0]]
            shown += first.pictures
            begin = np.arange(at, at + shared)
            segments[number].append(Segment(first.segment.ids[: shared + 1], first.segment.modality))
            at += shared
            alone = True
            for document in family.documents:
                segment = ids[document]
                tail = len(segment.ids) - 1 - shared
                places = np.concatenate([begin, np.arange(at, at + tail)])
                if tail:
                    segments[number].append(Segment(segment.ids[shared:], segment.modality))
                    attending.append(places)
                    alone = False
                at += tail
                wanted = learnt(segment, tokens.image_token_id)
                scored.append((places[wanted], segment.ids[1:][wanted], np.full(int(wanted.sum()), document)))
            if alone:
                attending.append(begin)
    sizes = tuple((picture.shape[0], picture.shape[1]) for picture in shown) if shape.picture.native else None
    batch = make_micro_batch(segments, shown if pictures else None, tokens, shape, sizes)
    place, label, owner = (np.concatenate(part).astype(np.int64) for part in zip(*scored, strict=True))
    missing = max(-len(place) % multiple, multiple if len(place) == 0 else 0)
    place, label = np.pad(place, (0, missing)), np.pad(label, (0, missing))
    positions = batch.position_ids
    if by_places:
        position_ids = np.zeros(packs * shape.sequence_length, np.int64)
        for places in attending:
            position_ids[places] = np.arange(len(places))
        positions = torch.from_numpy(position_ids).unsqueeze(0)
        row_of = ScoredRow.of_places(
            torch.from_numpy(place), [torch.from_numpy(places) for places in attending], positions[0]
        )
    else:
        row_of = ScoredRow.of_borders(torch.from_numpy(place).to(device), batch.cu_seqlens.to(device), batch.max_seqlen)
    return ScoringBatch(
        micro_batch=batch.to(device),
        row=row_of,
        position_ids=positions.to(device),
        labels=torch.from_numpy(label).unsqueeze(0).to(device),
        owner=torch.from_numpy(owner),
    )
