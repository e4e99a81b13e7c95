"""Ranks of a start meet each other, whatever earlier ones left in the store."""

from __future__ import annotations

import threading
from datetime import timedelta

import pytest
import torch.distributed as dist

from megatron_vlm.errors import UserError
from megatron_vlm.parallel.meeting import agreed_name

LONG = timedelta(seconds=20)


def _start(store: dist.Store, world_size: int, late: float = 0.0) -> list[str]:
    names = [""] * world_size

    def rank(number: int) -> None:
        names[number] = agreed_name(store, number, world_size, LONG)

    threads = [threading.Thread(target=rank, args=(number,)) for number in range(world_size)]
    threads[0].start()
    if late:
        threads[0].join(late)
        assert threads[0].is_alive(), "rank 0 went on with the hellos of the dead"
    for thread in threads[1:]:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    return names


@pytest.mark.parametrize("world_size", [1, 2, 5])
def test_all_get_one_name_and_another_each_start(world_size: int) -> None:
    store = dist.HashStore()
    found = [_start(store, world_size) for _ in range(3)]
    assert all(len(set(names)) == 1 for names in found)
    assert len({names[0] for names in found}) == 3


def test_rank_0_waits_for_the_living() -> None:
    """The hellos of the start before stand in the store, with names that were taken."""
    store = dist.HashStore()
    before = _start(store, 3)
    after = _start(store, 3, late=0.3)
    assert len(set(after)) == 1
    assert after[0] != before[0]


def test_a_rank_that_does_not_come_is_named() -> None:
    with pytest.raises(UserError, match=r"waited 0.2 s for rank 1, 2 of 3"):
        agreed_name(dist.HashStore(), 0, 3, timedelta(seconds=0.2))
