"""megatron-core's schedules, as this project configures them for GPUs, come to an end without buffers: no rank is stuck.

Simulated over a wire with NCCL's order (tests.parallel.simulated_wire), with deliberately wrong programs beside the right
ones: a wire on which nothing could get stuck would show nothing.
"""

from __future__ import annotations

import traceback
from typing import Any

import pytest
from megatron.core.pipeline_parallel import p2p_communication
from megatron.core.pipeline_parallel.p2p_communication import P2PCommunicator
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_vlm.planning.schedule_order import order
from tests.distributed.ranks import run_ranks
from tests.parallel.scheduled_ranks import SEQUENCE, Case, simulate
from tests.parallel.simulated_wire import Communicators

pytestmark = pytest.mark.distributed

#: stages, chunks a stage, micro-batches; fewer and more of them than the pipeline is deep, not its multiples where that runs
SHAPES = [(1, 1, 3), (2, 1, 5), (3, 1, 7), (4, 1, 2)]
INTERLEAVED = [(2, 2, 4), (3, 3, 6), (4, 2, 4)]


def _simulate_all(cases: list[Case]) -> list[Any]:
    found = []
    for case in cases:
        try:
            found.append(simulate(case))
        except Exception as error:
            found.append(f"{type(error).__name__}: {error}\n{traceback.format_exc()}")
    return found


def run_cases(cases: list[Case]) -> list[Any]:
    """In a fork of this process, which threads and what is installed for megatron-core do not outlive. What `simulate`
    gives, or the words of what it raised."""
    return run_ranks(1, _simulate_all, cases, timeout=280)[0]


def cases_of(shapes: list[tuple[int, int, int]], communicators: Communicators) -> list[Case]:
    """Under tensor and sequence parallelism messages are parts of the sequence."""
    return [Case(*shape, communicators, tensor=1 + number % 2) for number, shape in enumerate(shapes)]


def check(cases: list[Case]) -> None:
    for case, found in zip(cases, run_cases(cases), strict=True):
        assert not isinstance(found, str), f"{case}: {found}"
        passes, messages = found
        for rank in range(case.stages):
            wanted = order(rank, case.stages, case.chunks, case.micro_batches)
            if case.forward_only:
                assert [step for step in wanted if step.forward] == passes[rank], (case, rank)
            else:
                assert list(wanted) == passes[rank], (case, rank)
        # an activation, and a gradient back, across each border between chunks; no rank to itself
        sent = (1 if case.forward_only else 2) * case.micro_batches * (case.stages * case.chunks - 1)
        assert sum(messages.values()) == (sent if case.stages > 1 else 0), case
        assert all(abs(a - b) in (1, case.stages - 1) for a, b in messages), case


@pytest.mark.parametrize("communicators", ["group", "pair"])
def test_every_schedule_ends_in_the_order_that_the_planner_simulates(communicators: Communicators) -> None:
    check(cases_of(SHAPES + INTERLEAVED, communicators))


def test_scoring_ends_too() -> None:
    check([Case(*shape, forward_only=True) for shape in ((3, 1, 4), (3, 2, 6))])


@pytest.mark.slow
@pytest.mark.parametrize("communicators", ["group", "pair"])
@pytest.mark.parametrize("stages", range(2, 17))
def test_every_depth(stages: int, communicators: Communicators) -> None:
    plain = [(stages, 1, count) for count in (1, stages - 1, stages, 2 * stages + 1)]
    interleaved = [(stages, chunks, rounds * stages) for chunks in (2, 3, 4) for rounds in (1, 2)]
    check(cases_of(plain + interleaved, communicators))


class _GivesBeforeItTakes(P2PCommunicator):
    """Two transfers in place of one batch of both: a stage that hands an activation on meets one that hands a gradient
    back, and neither takes."""

    def send_forward_recv_backward(self, output_tensors: Any, tensor_shapes: Any, is_last_stage: bool) -> Any:
        self.send_forward(output_tensors, is_last_stage)
        return self.recv_backward(tensor_shapes, is_last_stage)

    def send_backward_recv_forward(self, input_tensor_grads: Any, tensor_shapes: Any, is_first_stage: bool) -> Any:
        self.send_backward(input_tensor_grads, is_first_stage)
        return self.recv_forward(tensor_shapes, is_first_stage)


def _all_send_first(**options: Any) -> dict[str, Any]:
    """As if every rank were an even one: around a ring, each sends and none receives."""
    requests = {}
    for way, rank, verb in (
        ("send_next", "next_pipeline_rank", "isend"),
        ("recv_prev", "prev_pipeline_rank", "irecv"),
        ("send_prev", "prev_pipeline_rank", "isend"),
        ("recv_next", "next_pipeline_rank", "irecv"),
    ):
        if options[f"tensor_{way}"] is not None:
            transfer = getattr(p2p_communication.torch.distributed, verb)
            requests[way] = transfer(options[f"tensor_{way}"], options[rank], options["group"])
    return requests


class _AllSendFirst(P2PCommunicator):
    def _communicate(self, **options: Any) -> Any:
        # for all ranks alike: the forked process that this runs in has no other use of it
        p2p_communication._p2p_ops = _all_send_first
        return super()._communicate(**options)


def _batched(config: TransformerConfig) -> None:
    config.overlap_p2p_comm, config.batch_p2p_comm = False, True


def test_wrong_programs_are_found() -> None:
    wrong = {
        "all ranks wait for ever: rank 0: send to 1 of (32, 1, 128); rank 1: send to 0 of (32, 1, 128)": Case(
            2, 1, 8, communicator=_GivesBeforeItTakes
        ),
        # one rank believes in one micro-batch less: the other waits for it, or what it sent is left over
        "WireError: ": Case(2, 1, 5, count=lambda rank: 5 - rank),
        # one rank has another length
        f"rank 0 sends ({SEQUENCE}, 1, 128) and rank 1 takes ({SEQUENCE // 2}, 1, 128)": Case(
            2, 1, 4, length=lambda rank: SEQUENCE >> rank
        ),
        # batched transfers between the same two ranks cross where the schedule is interleaved: models.transformer_configs
        "Crossed: chunk": Case(2, 2, 4, config=_batched),
        # last, since it changes megatron-core
        "all ranks wait for ever: rank 0: send to 1": Case(3, 2, 3, communicator=_AllSendFirst),
    }
    for words, found in zip(wrong, run_cases(list(wrong.values())), strict=True):
        assert isinstance(found, str), f"ended well: {words}"
        assert words in found, found
