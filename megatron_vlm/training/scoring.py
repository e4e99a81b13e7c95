"""Likelihood of documents under the model, packed, in any layout: the base of validation and of every task."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from megatron.core.pipeline_parallel.schedules import get_forward_backward_func
from torch import Tensor

from megatron_vlm.config.data import TokenCounts
from megatron_vlm.config.steps import StepShape
from megatron_vlm.models.language import label_likelihoods
from megatron_vlm.models.specs import choose_layer_spec
from megatron_vlm.ops.faults import raise_faults
from megatron_vlm.parallel.topology import Topology
from megatron_vlm.training.engine import Engine, unwrap
from megatron_vlm.training.scoring_rows import Scored, ScoringBatch, families, lay_rows, scoring_batch

__all__ = ["Scored", "needs_pictures", "rows_of", "score_documents"]

#: positions of a micro-batch at most, but for a pack that is longer
_POSITIONS = 4096


def needs_pictures(shape: StepShape, topology: Topology) -> bool:
    """Whether this rank decodes the pictures of what is scored: for the encoder, or because their sizes say the rows."""
    return topology.on_first_stage or shape.picture.native


def rows_of(shape: StepShape, pictures: Sequence[np.ndarray], count: int) -> int:
    """Placeholders of `count` pictures; these themselves, uint8 `[height, width, 3]`, are needed where they keep their
    aspect."""
    if not shape.picture.native:
        return count * shape.image_tokens
    return sum(shape.picture.of_pixels(*picture.shape[:2]) for picture in pictures)


def score_documents(
    engine: Engine,
    shape: StepShape,
    topology: Topology,
    tokens: TokenCounts,
    documents: Sequence[Scored],
    greedy: bool = False,
    share: bool = True,
) -> np.ndarray:
    """Negative log-likelihood of each document's trained labels, in rows of `shape.sequence_length` positions.

    Placeholders and pictures of the documents are of that shape too. Every rank passes the same documents; data- and
    context-parallel ranks share the rows, of which each scores whole ones. Logits are made of scored positions alone. What
    documents of a family begin with is read once, unless not `share`; Transformer Engine's attention cannot, and reads each
    document by itself.

    Returns:
        float64 `[documents, 2]` on every rank: sum over the labels in nats, and their number. With `greedy`
        `[documents, 3]`, the last the labels that are the likeliest token at their place; padding of the vocabulary then has
        no part of the probability, as it has in the loss.

    Raises:
        ValueError: a document longer than a row.
    """
    result = torch.zeros(len(documents), 3 if greedy else 2, dtype=torch.float64)
    parallel, host = engine.config.parallel, topology.device.type == "cpu"
    by_places = host and choose_layer_spec(engine.config, topology.device.type) == "host"
    found = families(documents, shape.sequence_length, tokens.image_token_id, share and by_places)
    rows = lay_rows(found, shape.sequence_length) if found else []
    # packs that are laid end to end are one micro-batch: short ones alone are mostly overhead. All have as many
    most = max(1, _POSITIONS // shape.sequence_length)
    count = -(-max(1, len(rows)) // most)
    count += -count % topology.replica_size
    together = -(-len(rows) // count)
    groups = [rows[at : at + together] for at in range(0, len(rows), max(1, together))]
    mine = groups[topology.replica_rank :: topology.replica_size]
    chunks = len(engine.forward_chunks)
    if mine:
        batches = [
            scoring_batch(
                group,
                documents,
                shape,
                tokens,
                packs=together,
                pictures=topology.on_first_stage,
                multiple=parallel.tensor_model_parallel_size if parallel.sequence_parallel else 1,
                device=topology.device,
                by_places=by_places,
            )
            for group in mine
        ]
        if chunks > 1:  # the interleaved schedule wants whole groups of micro-batches
            batches += batches[-1:] * (-len(batches) % topology.pipeline_size)
        outputs = _forward(engine, batches, tokens.vocab_size if greedy else None)
        if topology.on_last_stage and topology.tensor_rank == 0:
            for batch, values in zip(batches[: len(mine)], outputs, strict=False):
                result.index_add_(0, batch.owner, values[:, : len(batch.owner)].double().T.cpu())
    result = result.to(topology.device)
    dist.all_reduce(result)
    scores = result.cpu().numpy()
    raise_faults(topology.device)
    return scores


@torch.no_grad()
def _forward(engine: Engine, batches: Sequence[ScoringBatch], vocab_size: int | None) -> list[Tensor]:
    """[losses, ones] of each batch's scored places, `[2, n]`, on the last stage; with a vocabulary also where the label is
    the likeliest of it, `[3, n]`."""

    def step(iterator: Iterator[ScoringBatch], model: torch.nn.Module) -> tuple[Tensor, Any]:
        batch = next(iterator)
        core, micro = unwrap(model), batch.micro_batch

        def collect(losses: Tensor, non_loss_data: bool = False) -> Tensor:
            if not core.post_process:
                return losses.new_zeros(0)
            if vocab_size is None:
                return torch.cat([losses, torch.ones_like(losses)])
            losses, likeliest = label_likelihoods(losses, batch.labels, vocab_size)
            return torch.cat([losses, torch.ones_like(losses), likeliest])

        output = model(
            tokens=micro.tokens,
            position_ids=batch.position_ids,
            packed_seq_params=batch.row,
            labels=batch.labels if vocab_size is None and core.post_process else None,
            row_index=micro.row_index if core.pre_process else None,
            pictures=micro.picture_input if core.pre_process else None,
        )
        return output, collect

    chunks: Any = list(engine.forward_chunks)
    context = engine.topology.context_size
    for chunk in chunks:
        chunk.eval()
    iterators: Any = [iter(batches) for _ in chunks]
    with engine.whole_parameters():
        outputs = get_forward_backward_func()(
            forward_step_func=step,
            data_iterator=iterators if len(chunks) > 1 else iterators[0],
            model=chunks if len(chunks) > 1 else chunks[0],
            num_microbatches=len(batches),
            # whole rows, also on ranks that train on parts of them: the schedule counts on a part
            seq_length=batches[0].micro_batch.tokens.size(1) * context,
            micro_batch_size=1,
            forward_only=True,
            collect_non_loss_data=True,
        )
    for chunk in chunks:
        chunk.train()
    return outputs
