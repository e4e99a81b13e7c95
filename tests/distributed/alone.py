"""One document as a micro-batch by itself: what packed and shared rows are held against."""

from __future__ import annotations

from megatron_vlm.data.micro_batch import MicroBatch, make_micro_batch
from megatron_vlm.evaluation.scorer import Scorer
from megatron_vlm.training.scoring import Scored


def alone(document: Scored, scorer: Scorer) -> MicroBatch:
    """The document in a row of its own, padded to the model's row; pictures on the ranks that hold the encoder."""
    pictures = list(document.pictures) if scorer.decodes else None
    return make_micro_batch([[document.segment]], pictures, scorer.tokens, scorer.shape).to(scorer.topology.device)
