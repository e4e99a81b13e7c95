"""One step: micro-batches through megatron-core's schedule, losses by modality, the update."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.pipeline_parallel.schedules import get_forward_backward_func
from torch import Tensor

from megatron_vlm.data.micro_batch import MicroBatch
from megatron_vlm.ops.faults import raise_faults
from megatron_vlm.parallel.topology import Topology
from megatron_vlm.training.context_share import context_share
from megatron_vlm.training.engine import Engine, unwrap
from megatron_vlm.training.faults.bad_steps import Judge, not_finite
from megatron_vlm.training.loss_weights import MODALITIES, LabelWeights


@dataclass(frozen=True)
class StepResult:
    """What a step did, the same on every rank. Losses are means over the global batch's tokens of a modality, in nats."""

    loss: float
    losses: dict[str, float]
    tokens: dict[str, int]
    z_loss: float
    grad_norm: float
    updated: bool
    #: why the update was left out; None where it was made
    fault: str | None = None


def forward_row(
    model: torch.nn.Module, batch: MicroBatch, labels: bool = True, picture_rows: Tensor | None = None
) -> Tensor:
    """The model's output for one micro-batch, or for this context-parallel rank's part of it; without `labels` the last
    stage gives logits instead of losses. `picture_rows`: of its pictures, where they were encoded before."""
    return _forward_part(model, *context_share(batch), labels, picture_rows)


def _forward_part(
    model: torch.nn.Module, batch: MicroBatch, packed: PackedSeqParams, labels: bool, picture_rows: Tensor | None
) -> Tensor:
    core = unwrap(model)
    output: Tensor = model(
        tokens=batch.tokens,
        position_ids=batch.position_ids,
        packed_seq_params=packed,
        labels=batch.labels if labels and core.post_process else None,
        row_index=batch.row_index if core.pre_process else None,
        pictures=batch.picture_input if core.pre_process else None,
        picture_rows=picture_rows if core.pre_process else None,
    )
    return output


def _loss(
    batch: MicroBatch, model: torch.nn.Module, weights: LabelWeights | None, losses: Tensor
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Sum of the weighted token losses, their number, and the plain sums by modality: [sum, count] each, then the z-loss."""
    mask = batch.loss_mask
    total = (losses * (mask if weights is None else weights.count(batch))).sum()
    with torch.no_grad():
        z = unwrap(model).language_model.last_z_loss
        plain = losses.detach() if z is None else losses.detach() - z
        sums = []
        for modality in MODALITIES.values():
            chosen = batch.label_modality == modality
            sums += [plain[chosen].sum(), chosen.sum().float()]
        sums.append(torch.zeros_like(total) if z is None else (z * mask).sum())
        report = torch.stack(sums)
    # the schedule divides the loss in place; the report holds no view of it
    return total, mask.sum().to(torch.int), {"sums": report}


def _forward_step(
    batches: Iterator[tuple[MicroBatch, Tensor | None]], model: torch.nn.Module, weights: LabelWeights | None
) -> tuple[Tensor, Any]:
    batch, rows = next(batches)
    batch.arrive()
    part, packed = context_share(batch)
    return _forward_part(model, part, packed, True, rows), partial(_loss, part, model, weights)


def train_step(
    engine: Engine,
    batches: Sequence[MicroBatch],
    topology: Topology,
    learning_rate: float,
    *,
    judge: Judge = not_finite,
) -> StepResult:
    """Forward, backward and update of one global batch.

    `batches` are this data-parallel rank's micro-batches, the same on its tensor, context and pipeline ranks, and as many
    and as long on every rank. Another step may have others: nothing is built for one size. If no rank's batch holds a
    picture, or captions have a loss weight of 0, the encoder and the projector are left as they are. If `judge` finds a
    fault in the loss and the gradient norm of the step, the update is left out on all ranks, and parameters and moments keep
    their bits.

    Raises:
        ValueError: micro-batches of unlike length, for which pipeline stages would wait without end.
    """
    lengths = {batch.tokens.size(1) for batch in batches}
    if len(lengths) != 1:
        raise ValueError(f"the micro-batches of a step must be of one length, not {sorted(lengths)}")
    factors = engine.config.curriculum.stages[engine.stage].loss_weights
    weights = LabelWeights.of(factors, topology.device)
    engine.label_total = None if weights is None else weights.total
    positions = lengths.pop()
    engine.begin_step(positions, len(batches))
    chunks = engine.ddp
    rows = engine.encode_ahead(batches)
    iterators: Any = [zip(batches, rows, strict=True) for _ in chunks]
    reports = get_forward_backward_func()(
        forward_step_func=partial(_forward_step, weights=weights),
        data_iterator=iterators if len(chunks) > 1 else iterators[0],
        model=chunks if len(chunks) > 1 else chunks[0],
        num_microbatches=len(batches),
        seq_length=positions,
        micro_batch_size=1,
        forward_only=False,
    )
    sums = torch.zeros(2 * len(MODALITIES) + 2, dtype=torch.float64, device=topology.device)
    if topology.on_last_stage and topology.tensor_rank == 0:
        for report in reports:
            sums[:-1] += report["sums"].double()
    if topology.on_first_stage and topology.tensor_rank == topology.context_rank == 0 and factors.get("caption", 1.0):
        sums[-1] = sum(batch.pictures for batch in batches)
    dist.all_reduce(sums)
    values = sums.tolist()
    raise_faults(topology.device)  # the line above has waited for the device
    names = list(MODALITIES)
    tokens = {name: int(values[2 * i + 1]) for i, name in enumerate(names)}
    total = max(1, sum(tokens.values()))
    loss = sum(values[2 * i] for i in range(len(names))) / total
    faults: list[str | None] = []

    def allowed(grad_norm: float) -> bool:
        faults.append(_agreed(judge(loss, grad_norm), topology))
        return faults[-1] is None

    engine.optimizer.prepare(learning_rate, engine.updates)
    without_pictures = () if values[-1] else ("vision", "projector")
    with engine.optimizer.leaving_out(without_pictures):
        updated, grad_norm = engine.optimizer.step(allowed)
    if updated:
        engine.updates.count(without_pictures)
        engine.optimizer.set_count(engine.updates)
    return StepResult(
        loss=loss,
        losses={name: values[2 * i] / values[2 * i + 1] for i, name in enumerate(names) if values[2 * i + 1]},
        tokens=tokens,
        z_loss=values[-2] / total,
        grad_norm=grad_norm,
        updated=updated,
        fault=None if updated else (faults or ["the gradients overflow the loss scale"])[0],
    )


def _agreed(fault: str | None, topology: Topology) -> str | None:
    """`fault`, or another rank's: the norm is summed over the model alone where the optimiser is not distributed."""
    flag = torch.tensor([0.0 if fault is None else 1.0], device=topology.device)
    dist.all_reduce(flag, op=dist.ReduceOp.MAX)
    return fault if fault is not None or not flag.item() else "another rank's loss or gradient is bad"
