"""Process groups of a layout, and where this rank stands in it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from megatron_vlm.config.parallel import ParallelConfig
from megatron_vlm.errors import UserError
from megatron_vlm.parallel.meeting import agreed_name


@dataclass(frozen=True)
class Topology:
    """This rank's place. `device` is where its tensors live; stages count model chunks of the pipeline."""

    device: torch.device
    rank: int
    world_size: int
    tensor_rank: int
    tensor_size: int
    pipeline_rank: int
    pipeline_size: int
    data_rank: int
    data_size: int
    context_rank: int = 0
    context_size: int = 1

    @property
    def replica_rank(self) -> int:
        """Among the ranks that have the same part of the model, data- and context-parallel ones together."""
        return self.data_rank * self.context_size + self.context_rank

    @property
    def replica_size(self) -> int:
        return self.data_size * self.context_size

    @property
    def on_first_stage(self) -> bool:
        return self.pipeline_rank == 0

    @property
    def on_last_stage(self) -> bool:
        return self.pipeline_rank == self.pipeline_size - 1


def world_size_from_environment() -> int:
    """Ranks that torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def choose_device(wanted: str) -> str:
    """`auto` -> cuda where there is one, else cpu. Raises UserError when cuda is asked for and absent."""
    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise UserError("parallel.device is cuda, and this machine has no usable GPU; set it to auto or cpu")
    if wanted == "cpu" and available:
        raise UserError(
            "parallel.device is cpu, and this machine has a GPU: the host platform does not install beside one; "
            "set it to auto, or hide the GPU with CUDA_VISIBLE_DEVICES="
        )
    return "cuda" if available else "cpu"


def initialize(parallel: ParallelConfig, seed: int, timeout_s: float | None = None) -> Topology:
    """Join the process group, build megatron-core's groups for the layout, seed its RNG tracker.

    Collectives end after `timeout_s`; None: `parallel.timeout_s`.

    On a machine without a GPU the host platform is installed first. Works under torchrun, and alone as one rank.
    """
    timeout_s = parallel.timeout_s if timeout_s is None else timeout_s
    device_type = choose_device(parallel.device)
    if device_type == "cpu":
        from megatron_vlm.parallel import host

        host.install()
        torch.set_num_threads(max(1, int(os.environ.get("OMP_NUM_THREADS", "1"))))
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

    from megatron_vlm.parallel.core_release import quiet_notices

    quiet_notices()
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if device_type == "cuda":
        torch.cuda.set_device(local_rank)
        device = torch.device("cuda", local_rank)
    else:
        device = torch.device("cpu")
    if not dist.is_initialized():
        backend = "nccl" if device_type == "cuda" else "gloo"
        timeout = timedelta(seconds=timeout_s)
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            store, rank, world_size = next(iter(rendezvous("env://", timeout=timeout)))
            own = dist.PrefixStore(agreed_name(store, rank, world_size, timeout), store)
            dist.init_process_group(backend, store=own, rank=rank, world_size=world_size, timeout=timeout)
        elif "RANK" in os.environ and "MASTER_ADDR" in os.environ:
            dist.init_process_group(backend, timeout=timeout)
        else:
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout)
    if not parallel_state.model_parallel_is_initialized():
        vp = parallel.virtual_pipeline_model_parallel_size
        parallel_state.initialize_model_parallel(
            tensor_model_parallel_size=parallel.tensor_model_parallel_size,
            pipeline_model_parallel_size=parallel.pipeline_model_parallel_size,
            virtual_pipeline_model_parallel_size=vp if vp > 1 else None,
            context_parallel_size=parallel.context_parallel_size,
            # megatron-core makes a timedelta of it: else its groups would wait for half an hour
            distributed_timeout_minutes=timeout_s / 60,
        )
    # context-parallel ranks hold parts of one row, and drop other values of them
    context_rank = parallel_state.get_context_parallel_rank()
    model_parallel_cuda_manual_seed(seed + 1000 * context_rank, force_reset_rng=True)
    return Topology(
        device=device,
        rank=dist.get_rank(),
        world_size=dist.get_world_size(),
        tensor_rank=parallel_state.get_tensor_model_parallel_rank(),
        tensor_size=parallel_state.get_tensor_model_parallel_world_size(),
        pipeline_rank=parallel_state.get_pipeline_model_parallel_rank(),
        pipeline_size=parallel_state.get_pipeline_model_parallel_world_size(),
        data_rank=parallel_state.get_data_parallel_rank(),
        data_size=parallel_state.get_data_parallel_world_size(),
        context_rank=context_rank,
        context_size=parallel_state.get_context_parallel_world_size(),
    )


def shutdown() -> None:
    """Leave the process groups, so that the interpreter ends without gloo's or NCCL's complaints."""
    from megatron.core import parallel_state

    if parallel_state.model_parallel_is_initialized():
        parallel_state.destroy_model_parallel()
    if dist.is_initialized():
        dist.destroy_process_group()
