"""What is known of the ranks of a run, and which of them the others wait for."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import psutil

from megatron_vlm.training.faults.pulse import Pulse


@dataclass
class Peer:
    """A rank as its messages tell of it; times are monotonic seconds of the process that keeps this."""

    rank: int
    #: when the last message came
    heard: float
    #: seconds that its phase may take
    allowed_s: float
    host: str = "unknown"
    pid: int = 0
    #: when the process was created, by its host's clock: another one may get the same pid
    born: float = 0.0
    step: int = 0
    phase: str = "start"
    #: phases entered
    count: int = 0
    #: seconds in the phase when the last message was sent
    age: float = 0.0
    #: the collective that it waits in, empty: none
    collective: str = ""
    #: it said that it ends
    left: bool = False

    def hear(self, now: float, message: dict[str, Any]) -> None:
        self.heard = now
        for name in ("host", "pid", "born", "step", "phase", "count", "age", "allowed_s", "collective"):
            if name in message:
                setattr(self, name, message[name])

    def seconds_in_phase(self, now: float) -> float:
        return self.age + now - self.heard

    def silent(self, now: float, timeout_s: float) -> bool:
        """Whether it should have been heard by now; one that has not said anything yet has the time of its first phase."""
        return now - self.heard > (timeout_s if self.pid else self.allowed_s)

    @property
    def place(self) -> str:
        waiting = f", in {self.collective}" if self.collective else ""
        return f"at step {self.step} in phase {self.phase!r}{waiting}"

    @property
    def name(self) -> str:
        return f"rank {self.rank} (host {self.host}, pid {self.pid})"


@dataclass(frozen=True)
class Accused:
    """A process to end, and the rank on its host that does it; -1: none is there."""

    rank: int
    host: str
    pid: int
    born: float
    by: int


@dataclass(frozen=True)
class Verdict:
    """Why the run cannot go on. `failed`: a rank ends by an error of its own, which others may be about to raise too."""

    text: str
    accused: tuple[Accused, ...] = field(default=())
    failed: bool = False

    def to_map(self) -> dict[str, Any]:
        return {**asdict(self), "accused": [asdict(one) for one in self.accused]}

    @classmethod
    def from_map(cls, given: dict[str, Any]) -> Verdict:
        return cls(str(given["text"]), tuple(Accused(**one) for one in given["accused"]), bool(given["failed"]))


def identity() -> dict[str, Any]:
    """What a rank says of its process once."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "born": psutil.Process().create_time()}


def beat(pulse: Pulse, now: float) -> dict[str, Any]:
    """What a rank says of its main thread again and again."""
    mark = pulse.mark
    return {
        "step": mark.step,
        "phase": mark.phase,
        "count": mark.count,
        "age": now - mark.since,
        "allowed_s": mark.allowed_s,
        "collective": pulse.collective(),
    }


def accuse(guilty: Sequence[Peer], peers: Sequence[Peer]) -> tuple[Accused, ...]:
    """Each of `guilty`, with the lowest other rank on its host."""
    free = [peer for peer in peers if peer not in guilty and not peer.left and peer.pid]
    return tuple(
        Accused(one.rank, one.host, one.pid, one.born, min((p.rank for p in free if p.host == one.host), default=-1))
        for one in guilty
        if one.pid
    )


def silent_text(peer: Peer, now: float, listener: int) -> str:
    """What rank `listener` says of a peer that it should have heard."""
    if not peer.pid:
        return f"rank {peer.rank} never reported to rank {listener}"
    return f"{peer.name} gave no sign of life for {now - peer.heard:.1f} s; it was last seen {peer.place}"


def find_fault(peers: Sequence[Peer], now: float, timeout_s: float) -> Verdict | None:
    """What rank 0 sees: the ranks that are silent for `timeout_s`; else those behind all others for longer than their phase
    may take."""
    here = [peer for peer in peers if not peer.left]
    silent = [peer for peer in here if peer.silent(now, timeout_s)]
    if silent:
        return Verdict("; ".join(silent_text(peer, now, 0) for peer in silent), accuse(silent, here))
    last = min((peer.count for peer in here), default=0)
    behind = [peer for peer in here if peer.count == last]
    overdue = [peer for peer in behind if peer.seconds_in_phase(now) > peer.allowed_s]
    if len(behind) == len(here):  # all in one phase: the last to come may be what the others waited for until now
        if len(overdue) < len(here):
            return None
        last_one = min(overdue, key=lambda peer: peer.seconds_in_phase(now))
        return Verdict(
            f"all {len(here)} ranks stand for {last_one.seconds_in_phase(now):.1f} s {last_one.place}; their stacks tell "
            f"which one the others wait for"
        )
    # what a rank told last may be old: it is behind only where the others stand and wait, too, for longer than beats take
    if not overdue or any(peer.seconds_in_phase(now) < timeout_s / 2 for peer in here if peer not in behind):
        return None
    text = "; ".join(
        f"{peer.name} makes no progress for {peer.seconds_in_phase(now):.1f} s, {peer.place}, and the others wait for it"
        for peer in overdue
    )
    return Verdict(text, accuse(overdue, here))
