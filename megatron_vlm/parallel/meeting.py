"""How ranks that torchrun started meet in a store that may still hold what earlier ranks, now dead, said there.

torchrun (torch 2.13) keeps one store over all its restarts. A process group that is made in it as it is finds the addresses
of the ranks before, and waits for them. So the ranks of a start first agree on a name that no other has, and meet under it.
"""

from __future__ import annotations

import time
import uuid
from datetime import timedelta

import torch.distributed as dist

from megatron_vlm.errors import UserError

_PAUSE_S = 0.02


def agreed_name(store: dist.Store, rank: int, world_size: int, timeout: timedelta) -> str:
    """A name that all `world_size` ranks of this start get, and none of an earlier one.

    Each rank says hello by a number of its own. Rank 0 answers every hello that stands there, those of the dead too, with
    the name, and goes on when the rank that a hello is of has taken that very name.

    Raises:
        UserError: a rank does not come in time.
    """
    mine, deadline = uuid.uuid4().hex, time.monotonic() + timeout.total_seconds()
    if rank:
        store.set(f"hello/{rank}", mine)
        store.wait([f"name/{mine}"], timeout)
        name = store.get(f"name/{mine}").decode()
        store.set(f"taken/{mine}/{name}", "")
        return name
    missing = set(range(1, world_size))
    answered: dict[int, str] = {}
    while missing:
        for other in sorted(missing):
            if not store.check([f"hello/{other}"]):
                continue
            theirs = store.get(f"hello/{other}").decode()
            if answered.get(other) != theirs:
                store.set(f"name/{theirs}", mine)
                answered[other] = theirs
            elif store.check([f"taken/{theirs}/{mine}"]):
                missing.discard(other)
        if missing and time.monotonic() > deadline:
            some = ", ".join(map(str, sorted(missing)[:8]))
            raise UserError(f"rank 0 waited {timeout.total_seconds():g} s for rank {some} of {world_size} to start")
        if missing:
            time.sleep(_PAUSE_S)
    return mine
