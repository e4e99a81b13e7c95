"""The host platform: real megatron-core on gloo CPU ranks.

megatron-core addresses CUDA in many places. This file holds the whole list of what is told otherwise, and why. Every
replacement answers callers inside `megatron.core` only: a stray `torch.cuda` call of this project still raises. It is for
machines without a GPU, refuses to install where CUDA is present, and is no performance claim.

Known limits: gloo runs neither streams nor NCCL, so overlap hazards do not show; the interleaved schedule needs
`overlap_p2p_comm=True, batch_p2p_comm=False` (batched p2p gives wrong losses on gloo), which `models.specs` sets.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import queue
import sys
from collections.abc import Callable
from types import FrameType, ModuleType
from typing import Any

import torch
from torch.utils._device import _device_constructors

from megatron_vlm.errors import UserError
from megatron_vlm.parallel.host_adam import HostFusedAdam

_CPU = torch.device("cpu")
_installed = False

#: megatron-core releases whose CUDA sites were read and covered by the table below (tests/parallel/test_host.py).
#: What 0.19.2 names and 0.16.1 does not is all out of our way: `torch.cuda.device` in Mamba's kernels and FSDP's experiment,
#: `_sleep` in CUDA graphs, `is_current_stream_capturing` in mixture of experts, `is_initialized` in audio models,
#: `memory_snapshot`, `device_memory_used` and `cudart` in the inference engine
COVERED_RELEASES = ("0.16.1", "0.19.2")


class _NullStream:
    """Stands where megatron-core makes, waits for or records a CUDA stream: the host has one order of work."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def wait_stream(self, *args: Any) -> None: ...

    def synchronize(self) -> None: ...


def _is_core(frame: FrameType) -> bool:
    return str(frame.f_globals.get("__name__", "")).startswith("megatron.core")


def _answer_core(owner: Any, name: str, reply: Callable[..., Any]) -> None:
    """Replace `owner.name`: `reply(original, *args)` for callers in megatron.core, the original for everyone else."""
    original = getattr(owner, name)

    @functools.wraps(original, updated=())
    def dispatch(*args: Any, **kwargs: Any) -> Any:
        if _is_core(sys._getframe(1)):
            return reply(original, *args, **kwargs)
        return original(*args, **kwargs)

    setattr(owner, name, dispatch)


def _answer_core_class(owner: Any, name: str, reply: Callable[..., Any]) -> None:
    """The same for a class, which stays one: other libraries have it in annotations and ask `isinstance`."""
    original = getattr(owner, name)

    def new(cls: type, *args: Any, **kwargs: Any) -> Any:
        if _is_core(sys._getframe(1)):
            return reply(original, *args, **kwargs)
        return original(*args, **kwargs)

    setattr(owner, name, type(name, (original,), {"__new__": new, "__module__": original.__module__}))


def _is_cuda(device: Any) -> bool:
    if isinstance(device, str):
        return device.split(":")[0] == "cuda"
    return isinstance(device, torch.device) and device.type == "cuda"


def _factory_on_cpu(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if _is_cuda(kwargs.get("device")):
        kwargs["device"] = _CPU
    kwargs.pop("pin_memory", None)  # pinning asks for a CUDA context
    return original(*args, **kwargs)


#: torch.<name>(device="cuda") -> on the CPU: buffers of DDP, of the schedules (token counts) and of p2p receives
_FACTORIES = ("empty", "zeros", "ones", "full", "tensor", "empty_like", "zeros_like")

#: torch.cuda.<name> -> what a host rank answers
_CUDA_CALLS: dict[str, Callable[..., Any]] = {
    "current_device": lambda original, *a: _CPU,  # passed on as device=
    "device_count": lambda original, *a: 1,
    "set_device": lambda original, device: None,
    "synchronize": lambda original, *a: None,  # the schedules, after p2p
    "empty_cache": lambda original: None,
    "get_rng_state": lambda original, *a, **k: torch.get_rng_state(),  # the model-parallel RNG tracker
    "manual_seed": lambda original, seed: torch.manual_seed(seed),
    "current_stream": lambda original, *a: _NullStream(),  # DDP and the checkpoint writer wait for streams
    "default_stream": lambda original, *a: _NullStream(),
    "stream": lambda original, stream: contextlib.nullcontext(),
}


def _require(module: ModuleType, *names: str) -> ModuleType:
    missing = [name for name in names if not hasattr(module, name)]
    if missing:
        raise UserError(
            f"the host platform does not know this megatron-core: {module.__name__} has no {', '.join(missing)}; "
            f"install megatron-core {' or '.join(COVERED_RELEASES)}"
        )
    return module


@torch.no_grad()
def _copy_storage(target: torch.Tensor, source: torch.Tensor) -> None:
    memory = source.untyped_storage()
    target.untyped_storage().resize_(memory.size())
    target.untyped_storage().copy_(memory)


def _patch_rng() -> None:
    """The tracker of model-parallel RNG states reads and writes the generator of a CUDA device by private helpers."""
    random = _require(
        importlib.import_module("megatron.core.tensor_parallel.random"),
        "_get_cuda_rng_state",
        "_set_cuda_rng_state",
        "HAVE_TE",
    )
    random._get_cuda_rng_state = lambda device="cuda", clone=False, graph_safe=False: torch.get_rng_state()  # type: ignore[attr-defined]
    random._set_cuda_rng_state = lambda state, device=-1, graph_safe=False: torch.set_rng_state(state)  # type: ignore[attr-defined]
    if not random.HAVE_TE:  # selective recompute names these even with FP8 off
        random.FP8GlobalStateManager = type(  # type: ignore[attr-defined]
            "Fp8Off", (), {"is_fp8_enabled": staticmethod(lambda: False)}
        )
        random.activation_recompute_forward = lambda **k: contextlib.nullcontext()  # type: ignore[attr-defined]
        random.fp8_autocast = lambda **k: contextlib.nullcontext()  # type: ignore[attr-defined]
    if hasattr(random, "_share_storage_ext"):
        # 0.19 gives a recomputed activation's memory to the one that it stands for by a C++ extension, compiled at the first
        # use; 0.16 copies it, which needs no compiler
        _require(random, "_get_share_storage")._get_share_storage = lambda: _copy_storage  # type: ignore[attr-defined]


def _patch_optimizer() -> None:
    """An Adam with the state layout of TE's and apex's FusedAdam.

    With torch's Adam the distributed optimiser's checkpoints do not load; with this one the host also runs the branch
    of the state-dict code that a GPU runs.
    """
    optimizer = _require(importlib.import_module("megatron.core.optimizer"), "Adam", "USING_PYTORCH_OPTIMIZER")
    distributed = _require(
        importlib.import_module("megatron.core.optimizer.distrib_optimizer"),
        "Adam",
        "HAVE_APEX_OR_TE",
        "USING_APEX_OPTIMIZER",
    )
    optimizer.Adam = distributed.Adam = HostFusedAdam  # type: ignore[attr-defined]
    optimizer.USING_PYTORCH_OPTIMIZER = False  # type: ignore[attr-defined]
    distributed.HAVE_APEX_OR_TE = distributed.USING_APEX_OPTIMIZER = True  # type: ignore[attr-defined]


def _patch_checkpoint_writer() -> None:
    """The writer's result queue comes from a spawned Manager that re-imports __main__ (seconds a save).

    Saves are synchronous here: the queue is filled and emptied by one process and needs none of its own, which would
    outlive a killed rank and hold its output open.
    """
    writer = _require(
        importlib.import_module("megatron.core.dist_checkpointing.strategies.filesystem_async"),
        "_results_queue",
        "HAVE_PSUTIL",
    )
    if not writer.HAVE_PSUTIL:
        raise UserError("checkpoints need psutil (without it megatron-core's save hangs): pip install psutil")
    writer._results_queue = queue.Queue()  # type: ignore[attr-defined]  # made where it is None


def install() -> None:
    """Make megatron-core run on CPU ranks in this process. Idempotent.

    Raises:
        UserError: CUDA is present (use `parallel.device: cuda`), or this megatron-core lacks a name in the table.
    """
    global _installed
    if _installed:
        return
    if torch.cuda.is_available():
        raise UserError("the host platform is for machines without a GPU; set parallel.device to cuda or auto")
    # `with torch.device(...)` knows torch's factories by a set that is made at its first use: from the originals, which the
    # replacements call, or other libraries' models in this process would be made where they were not asked to be
    _device_constructors()
    for name in _FACTORIES:
        _answer_core(torch, name, _factory_on_cpu)
    for name, reply in _CUDA_CALLS.items():
        _answer_core(torch.cuda, name, reply)
    _answer_core_class(torch.cuda, "Stream", lambda original, *a, **k: _NullStream())
    _answer_core(torch.Tensor, "cuda", lambda original, tensor, *a, **k: tensor)
    # DDP and the distributed optimiser sort parameters by comparing Tensor.type() with "torch.cuda.*Tensor"
    _answer_core(
        torch.Tensor,
        "type",
        lambda original, tensor, *a, **k: (
            original(tensor, *a, **k) if a or k else original(tensor).replace("torch.", "torch.cuda.", 1)
        ),
    )
    _patch_rng()
    _patch_optimizer()
    _patch_checkpoint_writer()
    _installed = True


def installed() -> bool:
    return _installed
