"""One rank of a layout of any size in this process, without a GPU: its constructors run, its parameters take no memory.

For a process of its own (`python -m tests.models.parameter_table`): what is replaced stays replaced. Constructors of
megatron-core and Transformer Engine ask CUDA for devices and random numbers; here they are told of a chip of the given
capability whose current device is `meta` (or `cpu`). Groups are torch's fake ones, in which collectives do nothing.
Nothing computes: Transformer Engine's forwards refuse such tensors.
"""

from __future__ import annotations

import types
from importlib.util import find_spec

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.tensor_parallel import random as core_random

from megatron_vlm.config.data import TokenCounts
from megatron_vlm.config.parallel import ParallelConfig
from megatron_vlm.config.run import RunConfig
from megatron_vlm.models.vlm import VisionLanguageModel

TOKENS = TokenCounts(vocab_size=50_000, eod_id=0, image_token_id=1, pad_id=2)


def pretend_device(where: str = "meta", capability: tuple[int, int] = (9, 0)) -> None:
    """Answer the questions of CUDA-only constructors; `where`, meta or cpu, is what they get as their device."""
    if find_spec("transformer_engine"):
        import transformer_engine.pytorch  # noqa: F401  it looks at the driver while it is imported

    device = torch.device(where)
    about = types.SimpleNamespace(
        major=capability[0], minor=capability[1], multi_processor_count=132, total_memory=80 << 30, name="pretended"
    )
    answers = {
        "is_available": True,
        "device_count": 1,
        "current_device": device,
        "get_device_capability": capability,
        "get_device_properties": about,
        "get_device_name": about.name,
        "set_device": None,
        "synchronize": None,
        "is_current_stream_capturing": False,
        "is_bf16_supported": True,
        "Stream": None,
    }
    for name, answer in answers.items():
        setattr(torch.cuda, name, lambda *a, _answer=answer, **k: _answer)
    states = {
        "get_rng_state": lambda *a, **k: torch.get_rng_state(),
        "set_rng_state": lambda state, *a, **k: torch.set_rng_state(state),
        "manual_seed": lambda seed: torch.default_generator.manual_seed(int(seed)),
        "manual_seed_all": lambda seed: torch.default_generator.manual_seed(int(seed)),
    }
    for name, reply in states.items():
        setattr(torch.cuda, name, reply)
    torch.Tensor.cuda = torch.nn.Module.cuda = lambda self, *a, **k: self
    core_random._get_cuda_rng_state = lambda *a, **k: torch.get_rng_state()
    core_random._set_cuda_rng_state = lambda state, *a, **k: torch.set_rng_state(state)


def enter(rank: int, world_size: int, parallel: ParallelConfig) -> None:
    """Be this rank of so many in megatron-core's groups; a layout entered before is left."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    leave()
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world_size)
    vp = parallel.virtual_pipeline_model_parallel_size
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=parallel.tensor_model_parallel_size,
        pipeline_model_parallel_size=parallel.pipeline_model_parallel_size,
        virtual_pipeline_model_parallel_size=vp if vp > 1 else None,
        context_parallel_size=parallel.context_parallel_size,
        create_gloo_process_groups=False,
    )
    core_random.model_parallel_cuda_manual_seed(1, force_reset_rng=True)


def leave() -> None:
    if parallel_state.model_parallel_is_initialized():
        parallel_state.destroy_model_parallel()
    if dist.is_initialized():
        dist.destroy_process_group()


def build(config: RunConfig, where: str = "meta") -> list[VisionLanguageModel]:
    """The model chunks of the rank that was entered, as a GPU would build them."""
    virtual = config.parallel.virtual_pipeline_model_parallel_size
    first, last = (
        parallel_state.is_pipeline_first_stage(ignore_virtual=True),
        parallel_state.is_pipeline_last_stage(ignore_virtual=True),
    )
    with torch.device(where):
        return [
            VisionLanguageModel(
                config,
                TOKENS,
                "cuda",
                pre_process=first and number == 0,
                post_process=last and number == virtual - 1,
                vp_stage=number if virtual > 1 else None,
            )
            for number in range(virtual)
        ]
