"""Held-out loss by source, and the blind control: the same captions under each other's pictures."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from megatron_vlm.config.steps import StepShape
from megatron_vlm.data.documents import DocumentSource
from megatron_vlm.evaluation.placeholders import with_rows
from megatron_vlm.evaluation.scorer import Scorer
from megatron_vlm.ops.assemble import MODALITY_CAPTION
from megatron_vlm.training.scoring import Scored
from megatron_vlm.training.validation import held_out_documents


@dataclass(frozen=True)
class HeldOut:
    """Mean loss of a source's held-out tokens, in nats.

    `blind_loss` is that of its captions with pictures exchanged among them, None for text; `blind_gap` = blind_loss -
    loss is above zero where the model uses what it sees. `gap_error` is the gap's standard error over documents.
    """

    documents: int
    tokens: int
    modality: str
    loss: float
    blind_loss: float | None = None
    blind_gap: float | None = None
    gap_error: float | None = None


def exchange_pictures(documents: list[Scored], shape: StepShape, image_token_id: int) -> list[Scored]:
    """Every document with the pictures of the next one that has as many, and with their placeholders.

    Nobody keeps its own if there are two, but for a document that the pictures of no other leave room for in a row: to cut
    its text would compare unlike tokens.
    """
    rows = [tuple(shape.picture.of_pixels(*picture.shape[:2]) for picture in document.pictures) for document in documents]
    by_count: dict[int, list[int]] = {}
    for number, document in enumerate(documents):
        by_count.setdefault(len(document.pictures), []).append(number)
    exchanged = list(documents)
    for numbers in by_count.values():
        for place, number in enumerate(numbers):
            segment = documents[number].segment
            room = shape.sequence_length + 1 - len(segment.ids) + sum(rows[number])
            others = (numbers[(place + step) % len(numbers)] for step in range(1, len(numbers)))
            donor = next((other for other in others if sum(rows[other]) <= room), number)
            fitted = with_rows(segment, image_token_id, rows[number], rows[donor])
            exchanged[number] = Scored(fitted, documents[donor].pictures)
    return exchanged


def measure_held_out(scorer: Scorer, source: DocumentSource, limit: int) -> HeldOut:
    """Score up to `limit` documents (0: all) of a source, and its captions once more blind."""
    documents = held_out_documents(source, scorer.config, scorer.shape, limit, scorer.decodes)
    scores = scorer.score(documents)
    nll, count = scores[:, 0], scores[:, 1]
    total = max(1.0, float(count.sum()))
    captions = any(document.segment.modality == MODALITY_CAPTION for document in documents)
    if not captions:
        return HeldOut(len(documents), int(total), "text", float(nll.sum() / total))
    blind = scorer.score(exchange_pictures(documents, scorer.shape, scorer.tokens.image_token_id))[:, 0]
    # per document, in nats a token of the whole source, so that their mean times the number is the gap
    gaps = (blind - nll) * len(documents) / total
    return HeldOut(
        documents=len(documents),
        tokens=int(total),
        modality="caption",
        loss=float(nll.sum() / total),
        blind_loss=float(blind.sum() / total),
        blind_gap=float(gaps.mean()),
        gap_error=float(gaps.std(ddof=1) / np.sqrt(len(gaps))) if len(gaps) > 1 else None,
    )
