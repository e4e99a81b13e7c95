"""A module whose training begins late takes the steps that an optimiser of its own would take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_vlm.training.engine import unwrap
from megatron_vlm.training.loop import Run
from megatron_vlm.training.step import train_step
from tests.distributed.ranks import run_ranks
from tests.distributed.tiny_run import configuration, next_batches, one_step

pytestmark = pytest.mark.distributed


def _against_fresh_adam(config: Any) -> tuple[float, int]:
    """Three updates of encoder and projector from their first on, against torch's AdamW fed with the same gradients."""
    run = Run(config)
    run._start()
    one_step(run), one_step(run)
    run._enter_stage()
    late = {n: p for n, p in unwrap(run.engine.chunks[0]).named_parameters() if n.startswith(("vision.", "projector."))}
    copies = {n: torch.nn.Parameter(p.detach().clone()) for n, p in late.items()}
    adam = config.optimizer
    groups = [
        {"params": [copies[n] for n in late if late[n].dim() > 1], "weight_decay": adam.weight_decay},
        {"params": [copies[n] for n in late if late[n].dim() == 1], "weight_decay": 0.0},
    ]
    fresh = torch.optim.AdamW(groups, lr=1e-3, betas=(adam.adam_beta1, adam.adam_beta2), eps=adam.adam_eps)
    worst, updates = 0.0, 0
    for _ in range(3):
        batches, shape = next_batches(run)
        assert shape.pictures
        train_step(run.engine, batches, run.topology, 1e-3)
        run.step += 1
        for name, parameter in late.items():
            copies[name].grad = parameter.main_grad.clone()
        fresh.step()
        updates += 1
        worst = max(worst, *(float((late[n] - copies[n]).abs().max()) for n in late))
    return worst, updates


@pytest.mark.parametrize("distributed", [True, False])
def test_the_first_updates_are_a_fresh_adams(distributed: bool, data: Path) -> None:
    """To 1e-6, a thousandth of one update; weight decay is heavy so that it would show.

    Epsilon is far below the smallest gradients: those of the keys' biases, which are rounding alone (1e-13), and whose
    updates would otherwise differ by where epsilon is added.
    """
    fields = {"optimizer.clip_grad": 0.0, "optimizer.adam_eps": 1e-25, "optimizer.weight_decay": 3.0}
    config = configuration(data, {"use_distributed_optimizer": distributed}, **fields)
    worst, updates = run_ranks(1, _against_fresh_adam, config)[0]
    assert updates == 3
    assert worst < 1e-6
