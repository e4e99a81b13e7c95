"""Sends and receives between pipeline ranks, in memory, with the order that NCCL keeps: what would wait for ever is found.

Ranks are threads. Each communicator has one queue a rank. What is at the head of it goes through when the rank at the other
end has the counterpart at the head of its own: nothing is buffered, nothing overtakes. A batch (`batch_isend_irecv`) is one
entry, whose sends and receives go through in any order, those between the same two ranks in the order they were given. So
whether a set of programs comes to an end does not depend on how threads are scheduled, and if all that have not ended wait,
they would do so for ever.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Literal

import torch
from torch import Tensor

#: communicators of sends outside of a batch. group: the process group's own, as torch has it where a device is bound to the
#: group; pair: one for each two ranks, as torch makes them otherwise
Communicators = Literal["group", "pair"]


class WireError(Exception):
    """Ranks do not agree: one waits for ever, shapes differ, or something was sent that nobody takes."""


@dataclass(frozen=True)
class Group:
    """What the schedules ask of a process group. Ranks within it are global ones."""

    own: int
    ranks: int
    name: str = "pipeline"

    def rank(self) -> int:
        return self.own

    def size(self) -> int:
        return self.ranks


@dataclass
class _Op:
    sends: bool
    tensor: Tensor
    peer: int
    group: Any
    through: bool = False

    def __str__(self) -> str:
        return f"{'send to' if self.sends else 'receive from'} {self.peer} of {tuple(self.tensor.shape)}"


@dataclass
class _Entry:
    ops: list[_Op]

    @property
    def through(self) -> bool:
        return all(op.through for op in self.ops)


@dataclass
class Wire:
    """Between `ranks` threads. `messages` counts what went through, by (sender, receiver)."""

    ranks: int
    communicators: Communicators
    messages: dict[tuple[int, int], int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._changed = threading.Condition()
        self._queues: dict[Hashable, list[deque[_Entry]]] = {}
        self._waiting: dict[int, _Entry] = {}
        self._alive = self.ranks
        self._failure: str | None = None
        self._here = threading.local()

    def run(self, program: Callable[[int], Any]) -> list[Any]:
        """`program(rank)` on every rank; what each returned.

        Raises:
            WireError: they wait for ever, or leave something behind. What a program raises is raised as it is.
        """
        results: list[Any] = [None] * self.ranks
        raised: list[BaseException] = []

        def one(rank: int) -> None:
            self._here.rank = rank
            try:
                results[rank] = program(rank)
            except BaseException as error:
                raised.append(error)
                with self._changed:
                    self._fail(f"rank {rank} raised {error!r}")
            with self._changed:
                self._alive -= 1
                self._look_for_deadlock()

        threads = [threading.Thread(target=one, args=(rank,), daemon=True) for rank in range(self.ranks)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if raised:
            raise raised[0]
        left = [str(op) for queues in self._queues.values() for queue in queues for entry in queue for op in entry.ops]
        if left:
            raise WireError(f"nobody takes what was left: {left}")
        return results

    def distributed(self) -> SimpleNamespace:
        """What stands for `torch.distributed`."""

        def alone(op: _Op) -> Any:
            return self._enqueue(self._communicator(op), _Entry([op]))

        def batch(ops: Sequence[_Op]) -> list[Any]:
            return [self._enqueue(("group", ops[0].group.name), _Entry(list(ops)))]

        # the storage stays though the schedule lets the tensor go, as NCCL keeps it until it was sent
        send = lambda tensor, dst, group=None: alone(_Op(True, tensor.detach(), dst, group))  # noqa: E731
        receive = lambda tensor, src, group=None: alone(_Op(False, tensor.detach(), src, group))  # noqa: E731
        return SimpleNamespace(
            isend=send,
            irecv=receive,
            P2POp=lambda which, tensor, peer, group: _Op(which is send, tensor.detach(), peer, group),
            batch_isend_irecv=batch,
            get_global_rank=lambda group, rank: rank,
            get_backend=lambda group: "nccl",
            group=SimpleNamespace(WORLD=Group(-1, self.ranks, "world")),
        )

    def _communicator(self, op: _Op) -> Hashable:
        if self.communicators == "group":
            return "group", op.group.name
        return op.group.name, min(self._here.rank, op.peer), max(self._here.rank, op.peer)

    def _enqueue(self, communicator: Hashable, entry: _Entry) -> Any:
        rank = self._here.rank
        with self._changed:
            queues = self._queues.setdefault(communicator, [deque() for _ in range(self.ranks)])
            queues[rank].append(entry)
            self._go_on(queues, rank)
        return SimpleNamespace(wait=lambda: self._wait(rank, entry))

    def _wait(self, rank: int, entry: _Entry) -> None:
        with self._changed:
            while not entry.through:
                if self._failure is None:
                    self._waiting[rank] = entry
                    self._look_for_deadlock()
                if self._failure is not None:
                    raise WireError(self._failure)
                self._changed.wait()
            self._waiting.pop(rank, None)

    def _go_on(self, queues: list[deque[_Entry]], rank: int) -> None:
        """Whatever a new head of `rank` lets through, here and at the ranks that go on because of it."""
        changed = [rank]
        while changed:
            rank = changed.pop()
            if not queues[rank]:
                continue
            head = queues[rank][0]
            for op in head.ops:
                if op.through or not queues[op.peer]:
                    continue
                other = queues[op.peer][0]
                counterpart = next(
                    (o for o in other.ops if not o.through and o.peer == rank and o.sends != op.sends and o is not op), None
                )
                if counterpart is not None:
                    self._carry(rank, op, counterpart)
                    if other.through:
                        queues[op.peer].popleft()
                        self._waiting.pop(op.peer, None)
                        changed.append(op.peer)
            if head.through:
                queues[rank].popleft()
                changed.append(rank)
        self._changed.notify_all()

    def _carry(self, rank: int, op: _Op, counterpart: _Op) -> None:
        (sent, taken), pair = ((op, counterpart), (rank, op.peer)) if op.sends else ((counterpart, op), (op.peer, rank))
        if (sent.tensor.shape, sent.tensor.dtype) != (taken.tensor.shape, taken.tensor.dtype):
            self._fail(
                f"rank {pair[0]} sends {tuple(sent.tensor.shape)} and rank {pair[1]} takes {tuple(taken.tensor.shape)}"
            )
            raise WireError(self._failure)
        taken.tensor.copy_(sent.tensor)
        sent.through = taken.through = True
        self.messages[pair] = self.messages.get(pair, 0) + 1

    def _look_for_deadlock(self) -> None:
        waiting = {rank: entry for rank, entry in self._waiting.items() if not entry.through}
        if self._failure is None and self._alive and len(waiting) == self._alive:
            lines = [f"rank {rank}: " + ", ".join(str(op) for op in waiting[rank].ops) for rank in sorted(waiting)]
            self._fail("all ranks wait for ever: " + "; ".join(lines))

    def _fail(self, why: str) -> None:
        self._failure = self._failure or why
        self._changed.notify_all()


class WiredTorch:
    """`torch` with the wire in place of its `distributed`."""

    def __init__(self, wire: Wire) -> None:
        self.distributed = wire.distributed()

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)
