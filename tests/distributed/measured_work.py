"""What a real step on a rank does and holds: operations by PyTorch's counter, bytes kept for the backward pass at their
peak, bytes of weights, gradients and optimiser state."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from megatron_vlm.config.run import RunConfig
from megatron_vlm.planning.flops import BatchShape
from megatron_vlm.training.loop import Run
from megatron_vlm.training.step import train_step
from tests.distributed.tiny_run import next_batches, plan_from


class _Handle:
    """Stands for a kept tensor in the graph; gone when the graph lets go of it."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor


class Kept:
    """Bytes of all storages that graphs keep, each counted once, without those of parameters: at the most. A storage that
    was emptied to be computed again counts as it is, not as it was when the graph took it."""

    def __init__(self, parameters: set[int]) -> None:
        self.parameters = parameters
        self.handles: weakref.WeakSet[_Handle] = weakref.WeakSet()
        self.most = 0

    def pack(self, tensor: torch.Tensor) -> Any:
        storage = tensor.untyped_storage()
        if storage.data_ptr() in self.parameters or not storage.nbytes():
            return tensor
        handle = _Handle(tensor)
        self.handles.add(handle)
        held = {s._cdata: s.nbytes() for s in (h.tensor.untyped_storage() for h in self.handles)}
        self.most = max(self.most, sum(held.values()))
        return handle

    @staticmethod
    def unpack(kept: Any) -> torch.Tensor:
        return kept.tensor if isinstance(kept, _Handle) else kept


def _run_at(config: RunConfig, step: int) -> Run:
    run = Run(config)
    run._start()
    run.step = step
    plan_from(run, step)
    run._enter_stage()
    return run


def operations(config: RunConfig, step: int) -> tuple[dict[str, int], BatchShape, int]:
    """Of one step on one rank: by operator of PyTorch; with the shape of its batch and the padded vocabulary."""
    run = _run_at(config, step)
    batches, shape = next_batches(run)
    with FlopCounterMode(display=False) as counter:
        train_step(run.engine, batches, run.topology, 1e-3)
    counts = counter.get_flop_counts()["Global"]
    return {str(operator): count for operator, count in counts.items()}, shape, run._vocab


def memory(config: RunConfig, step: int) -> dict[str, Any]:
    """Bytes of this rank in one step, its stage and the pictures of its micro-batches."""
    run = _run_at(config, step)
    batches, _ = next_batches(run)
    engine = run.engine
    parameters = [p for chunk in engine.ddp for p in chunk.parameters()]
    kept = Kept({p.untyped_storage().data_ptr() for p in parameters})
    with torch.autograd.graph.saved_tensors_hooks(kept.pack, kept.unpack):
        train_step(engine, batches, run.topology, 1e-3)
    state = [t for values in _state(engine) for t in values if isinstance(t, torch.Tensor) and t.dim() > 0]
    return {
        "stage": run.topology.pipeline_rank,
        "vocab": run._vocab,
        "pictures": [batch.pictures for batch in batches],
        "parameters": sum(p.numel() for p in parameters),
        "weights": sum(p.numel() * p.element_size() for p in parameters),
        "gradients": sum(b.grad_data.numel() * b.grad_data.element_size() for chunk in engine.ddp for b in chunk.buffers),
        "optimizer": sum(t.numel() * t.element_size() for t in state),
        "kept": kept.most,
    }


def _state(engine: Any) -> list[list[Any]]:
    return [list(values.values()) for values in engine.optimizer.inner.optimizer.state.values()]
