"""Likelihood of documents under the model, packed, in any layout: the base of validation and of every task."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from megatron.core.pipeline_parallel.schedules import get_forward_backward_func
from torch import Tensor

from megatron_vlm.config.data import TokenCounts
from megatron_vlm.config.steps import StepShape
from megatron_vlm.data.micro_batch import MicroBatch, make_micro_batch
from megatron_vlm.models.language import label_likelihoods
from megatron_vlm.ops.assemble import Segment
from megatron_vlm.ops.faults import raise_faults
from megatron_vlm.ops.pack_plan import plan_packs
from megatron_vlm.parallel.topology import Topology
from megatron_vlm.training.engine import Engine, unwrap
from megatron_vlm.training.step import forward_row

#: positions of a micro-batch at most, but for a pack that is longer
_POSITIONS = 4096


@dataclass(frozen=True)
class Scored:
    """A document to score: its ids (`loss_from` marks where the answer begins) and its pictures, uint8 `[height, width, 3]`.

    Pictures are needed on ranks of the first pipeline stage, and, where they keep their aspect, on all (`needs_pictures`).
    """

    segment: Segment
    pictures: tuple[np.ndarray, ...] = ()


def needs_pictures(shape: StepShape, topology: Topology) -> bool:
    """Whether this rank decodes the pictures of what is scored: for the encoder, or because their sizes say the rows."""
    return topology.on_first_stage or shape.picture.native


def rows_of(shape: StepShape, pictures: Sequence[np.ndarray], count: int) -> int:
    """Placeholders of `count` pictures; these themselves, uint8 `[height, width, 3]`, are needed where they keep their
    aspect."""
    if not shape.picture.native:
        return count * shape.image_tokens
    return sum(shape.picture.of_pixels(*picture.shape[:2]) for picture in pictures)


def _rows(documents: Sequence[Scored], capacity: int) -> list[list[int]]:
    """Documents by number into as few rows of at most `capacity` positions as best fit takes."""
    lengths = np.array([len(document.segment.ids) - 1 for document in documents], np.int64)
    if lengths.max(initial=0) > capacity:
        number = int(lengths.argmax())
        raise ValueError(f"document {number} has {lengths[number]} positions, a row {capacity}")
    plan = plan_packs(lengths, capacity)
    borders = zip(plan.pack_starts[:-1], plan.pack_starts[1:], strict=True)
    return [plan.document[begin:end].tolist() for begin, end in borders]


def score_documents(
    engine: Engine,
    shape: StepShape,
    topology: Topology,
    tokens: TokenCounts,
    documents: Sequence[Scored],
    greedy: bool = False,
) -> np.ndarray:
    """Negative log-likelihood of each document's trained labels, in rows of `shape.sequence_length` positions.

    Placeholders and pictures of the documents are of that shape too. Every rank passes the same documents; data-parallel
    ranks share the rows.

    Returns:
        float64 `[documents, 2]` on every rank: sum over the labels in nats, and their number. With `greedy`
        `[documents, 3]`, the last the labels that are the likeliest token at their place; padding of the vocabulary then has
        no part of the probability, as it has in the loss.

    Raises:
        ValueError: a document longer than a row.
    """
    rows = _rows(documents, shape.sequence_length)
    # packs that are laid end to end are one micro-batch: short ones alone are mostly overhead. All have as many
    together = max(1, min(_POSITIONS // shape.sequence_length, -(-len(rows) // topology.data_size)))
    groups = [rows[at : at + together] for at in range(0, len(rows), together)]
    mine = groups[topology.data_rank :: topology.data_size]
    chunks = len(engine.forward_chunks)
    result = torch.zeros(len(documents), 3 if greedy else 2, dtype=torch.float64)
    if mine:
        batches = [_batch(group, documents, shape, topology, tokens, together) for group in mine]
        if chunks > 1:  # the interleaved schedule wants whole groups of micro-batches
            batches += batches[-1:] * (-len(batches) % topology.pipeline_size)
        outputs = _forward(engine, batches, tokens.vocab_size if greedy else None)
        if topology.on_last_stage and topology.tensor_rank == 0:
            for group, losses in zip(mine, outputs, strict=False):
                for place, row in enumerate(group):
                    at = place * shape.sequence_length
                    for number in row:
                        length = len(documents[number].segment.ids) - 1
                        result[number] = losses[:, at : at + length].double().sum(dim=1).cpu()
                        at += length
    result = result.to(topology.device)
    dist.all_reduce(result)
    scores = result.cpu().numpy()
    raise_faults(topology.device)
    return scores


def _batch(
    rows: Sequence[Sequence[int]],
    documents: Sequence[Scored],
    shape: StepShape,
    topology: Topology,
    tokens: TokenCounts,
    packs: int = 1,
) -> MicroBatch:
    """Rows of documents by number as a micro-batch of `packs` packs; those that are missing are padding."""
    pictures = [picture for row in rows for number in row for picture in documents[number].pictures]
    sizes = tuple((picture.shape[0], picture.shape[1]) for picture in pictures) if shape.picture.native else None
    filled = [[documents[number].segment for number in row] for row in rows]
    return make_micro_batch(
        filled + [[] for _ in range(packs - len(rows))],
        pictures if topology.on_first_stage else None,
        tokens,
        shape,
        sizes,
    ).to(topology.device)


@torch.no_grad()
def _forward(engine: Engine, batches: Sequence[MicroBatch], vocab_size: int | None) -> list[Tensor]:
    """[losses masked, mask], `[2, t]`, of each row, on the last stage; with a vocabulary also where the label is the
    likeliest of it, masked, `[3, t]`."""

    def step(iterator: Iterator[MicroBatch], model: torch.nn.Module) -> tuple[Tensor, Any]:
        batch = next(iterator)

        def collect(losses: Tensor, non_loss_data: bool = False) -> Tensor:
            mask = batch.loss_mask
            if vocab_size is None or not unwrap(model).post_process:
                return torch.cat([losses * mask, mask])
            losses, likeliest = label_likelihoods(losses, batch.labels, vocab_size)
            return torch.cat([losses * mask, mask, likeliest * mask])

        return forward_row(model, batch, labels=vocab_size is None), collect

    chunks: Any = list(engine.forward_chunks)
    for chunk in chunks:
        chunk.eval()
    iterators: Any = [iter(batches) for _ in chunks]
    with engine.whole_parameters():
        outputs = get_forward_backward_func()(
            forward_step_func=step,
            data_iterator=iterators if len(chunks) > 1 else iterators[0],
            model=chunks if len(chunks) > 1 else chunks[0],
            num_microbatches=len(batches),
            seq_length=batches[0].tokens.size(1),
            micro_batch_size=1,
            forward_only=True,
            collect_non_loss_data=True,
        )
    for chunk in chunks:
        chunk.train()
    return outputs
