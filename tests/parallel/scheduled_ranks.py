"""megatron-core's schedules and its communicator, as they are, on every rank of a pipeline at once, over a simulated wire.

Only the model is ours: each chunk writes on what it passes on which micro-batch it is of and which chunk it comes from, and
looks whether what it gets is of the micro-batch that it is about to work on and comes from its neighbour.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from megatron.core.pipeline_parallel import p2p_communication
from megatron.core.pipeline_parallel.p2p_communication import P2PCommunicator
from megatron.core.pipeline_parallel.schedules import get_forward_backward_func
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.enums import ModelType
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_vlm.config.loading import load_config
from megatron_vlm.models.transformer_configs import language_config
from megatron_vlm.parallel import host
from megatron_vlm.planning.schedule_order import Pass
from tests.parallel.simulated_wire import Communicators, Group, Wire, WiredTorch

SEQUENCE = 32


@dataclass(frozen=True)
class Case:
    """A step. What has a default below `forward_only` is there to be spoilt: the communicator, a rank's length of rows and
    number of micro-batches, and its configuration."""

    stages: int
    chunks: int
    micro_batches: int
    communicators: Communicators = "group"
    tensor: int = 1
    forward_only: bool = False
    communicator: type[P2PCommunicator] = P2PCommunicator
    length: Callable[[int], int] = lambda rank: SEQUENCE
    count: Callable[[int], int] | None = None
    config: Callable[[TransformerConfig], None] = lambda config: None


class Crossed(Exception):
    """A chunk was handed what is meant for another, or for another micro-batch."""


class _Marked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, chunk: Chunk, micro_batch: int) -> Tensor:
        ctx.chunk, ctx.micro_batch = chunk, micro_batch
        return chunk.mark(x, micro_batch)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        chunk, micro_batch = ctx.chunk, ctx.micro_batch
        chunk.passes.append(Pass(False, chunk.number, micro_batch))
        if chunk.place < chunk.last:
            chunk.check(grad, micro_batch, chunk.place + 1)
        return chunk.mark(grad, micro_batch), None, None


class Chunk(torch.nn.Module):
    """A model chunk without layers."""

    def __init__(self, config: TransformerConfig, number: int, place: int, last: int, passes: list[Pass]) -> None:
        super().__init__()
        self.config, self.model_type, self.vp_stage = config, ModelType.encoder_or_decoder, None
        self.number, self.place, self.last, self.passes = number, place, last, passes
        self.given: Tensor | None = None

    def set_input_tensor(self, given: Any) -> None:
        self.given = given[0] if isinstance(given, list) else given

    def mark(self, x: Tensor, micro_batch: int) -> Tensor:
        x = x.clone()
        x[..., 0], x[..., 1] = micro_batch, self.place
        return x

    def check(self, x: Tensor, micro_batch: int, place: int) -> None:
        ok = bool((x[..., 0] == micro_batch).all()) and bool((x[..., 1] == place).all())
        if not ok:
            raise Crossed(
                f"chunk {self.place} works on micro-batch {micro_batch} from chunk {place} and was given micro-batch "
                f"{x.flatten()[0]:g} from chunk {x.flatten()[1]:g}"
            )

    def forward(self, micro_batch: int, length: int) -> Tensor:
        self.passes.append(Pass(True, self.number, micro_batch))
        x = self.given
        if self.place == 0:
            assert x is None
            x = torch.zeros(length, 1, self.config.hidden_size, dtype=self.config.params_dtype, requires_grad=True)
        else:
            assert x is not None
            self.check(x, micro_batch, self.place - 1)
        made: Tensor = _Marked.apply(x, self, micro_batch)
        return made


def _loss(output: Tensor) -> tuple[Tensor, Tensor, dict[str, float]]:
    return output.float().sum(), torch.tensor(output.size(0), dtype=torch.int), {}


def _forward_step(batches: Iterator[int], chunk: Chunk, length: int) -> tuple[Tensor, Any]:
    return chunk(next(batches), length), _loss


def _program(case: Case, rank: int) -> list[Pass]:
    config = _config(case)
    case.config(config)
    passes: list[Pass] = []
    last = case.stages * case.chunks - 1
    chunks = [Chunk(config, n, n * case.stages + rank, last, passes) for n in range(case.chunks)]
    groups = ProcessGroupCollection()
    groups.pp, groups.tp, groups.cp = Group(rank, case.stages), Group(0, case.tensor, "tensor"), Group(0, 1, "context")
    groups.embd = groups.pos_embd = groups.dp_cp = None
    count, length = case.micro_batches if case.count is None else case.count(rank), case.length(rank)
    iterators = [iter(range(count)) for _ in chunks]
    whole = case.chunks > 1
    virtual = case.chunks if whole else None
    reports = get_forward_backward_func(case.stages, virtual)(
        forward_step_func=partial(_forward_step, length=length // case.tensor),
        data_iterator=iterators if whole else iterators[0],
        model=chunks if whole else chunks[0],
        num_microbatches=count,
        seq_length=length,
        micro_batch_size=1,
        forward_only=case.forward_only,
        p2p_communicator=case.communicator(groups.pp, config),
        pg_collection=groups,
    )
    assert len(reports) == (count if rank == case.stages - 1 else 0)
    assert all(next(iterator, None) is None for iterator in iterators)
    return passes


def _config(case: Case) -> TransformerConfig:
    """As a run on GPUs has it, so that batched or not, overlapped or not, are the choices of this project."""
    config = load_config(preset="tiny")
    parallel = replace(
        config.parallel,
        tensor_model_parallel_size=case.tensor,
        sequence_parallel=case.tensor > 1,
        pipeline_model_parallel_size=case.stages,
        virtual_pipeline_model_parallel_size=case.chunks,
    )
    layers = replace(config.model.language, num_layers=case.stages * case.chunks)
    return language_config(replace(config.model, language=layers), parallel, "cuda")


def simulate(case: Case) -> tuple[list[list[Pass]], dict[tuple[int, int], int]]:
    """What each rank did in order, and the number of messages by (sender, receiver). For a forked process: megatron-core's
    host platform stays installed, and its communicator on the last wire.

    Raises:
        WireError, Crossed: as these say.
    """
    host.install()
    wire = Wire(case.stages, case.communicators)
    wired = WiredTorch(wire)
    p2p_communication.torch, p2p_communication.dist = wired, wired.distributed
    return wire.run(partial(_program, case)), wire.messages
