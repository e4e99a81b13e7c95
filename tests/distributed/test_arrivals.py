"""Each micro-batch is waited for just before it is computed, and no sooner: its copy goes on beside those before it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from megatron_vlm.config.run import RunConfig
from megatron_vlm.training.device_copies import DeviceCopies
from megatron_vlm.training.engine import unwrap
from megatron_vlm.training.loop import Run
from megatron_vlm.training.step import train_step
from tests.distributed.ranks import run_ranks
from tests.distributed.tiny_run import PP2, configuration, next_batches

pytestmark = pytest.mark.distributed

PICTURES = "[{sources: {text: 0.5, captions: 0.5}}]"


def _order(config: RunConfig) -> list[tuple[str, int]]:
    """What a step waits for and computes, micro-batch by micro-batch."""
    run = Run(config)
    run._start()
    batches, _ = next_batches(run)
    assert DeviceCopies(run.topology.device).begin(batches) == batches, "on the host they are where they are used"
    seen: list[tuple[str, int]] = []
    arriving = [
        dataclasses.replace(batch, arrival=lambda number=number: seen.append(("arrived", number)))
        for number, batch in enumerate(batches)
    ]
    counted = iter(range(len(batches)))

    def computes(module: Any, *_: Any) -> None:
        seen.append(("computed", next(counted)))

    unwrap(run.engine.chunks[0]).register_forward_pre_hook(computes, with_kwargs=True)
    train_step(run.engine, arriving, run.topology, 1e-3)
    return seen


def test_a_micro_batch_is_waited_for_when_its_turn_comes(data: Path) -> None:
    found = run_ranks(1, _order, configuration(data, **{"curriculum.stages": PICTURES}))[0]
    assert found == [event for number in range(4) for event in (("arrived", number), ("computed", number))]


def test_stages_wait_for_theirs_alone(data: Path) -> None:
    for found in run_ranks(2, _order, configuration(data, PP2, **{"curriculum.stages": PICTURES})):
        assert found == [event for number in range(4) for event in (("arrived", number), ("computed", number))]


def test_pictures_of_a_whole_step_are_waited_for_where_they_are_encoded(data: Path) -> None:
    config = configuration(data, {**PP2, "vision": "data_all_stages"}, **{"curriculum.stages": PICTURES})
    for found in run_ranks(2, _order, config):
        assert found[:4] == [("arrived", number) for number in range(4)], "all of them have pictures"
        assert found[4:] == [event for number in range(4) for event in (("arrived", number), ("computed", number))]
