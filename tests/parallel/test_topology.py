"""Each rank knows its place; a device that is not there is refused."""

from __future__ import annotations

import pytest
import torch

from megatron_vlm.config.parallel import ParallelConfig
from megatron_vlm.errors import UserError
from megatron_vlm.parallel import topology
from tests.distributed.ranks import run_ranks


def _place(parallel: ParallelConfig) -> tuple[int, ...]:
    top = topology.initialize(parallel, seed=7)
    ends = (int(top.on_first_stage), int(top.on_last_stage))
    sizes = (top.tensor_size, top.pipeline_size, top.data_size, top.world_size)
    assert sizes == (2, 2, 1, 4)
    assert top.device.type == "cpu"
    topology.shutdown()
    assert not torch.distributed.is_initialized()
    return (top.rank, top.tensor_rank, top.pipeline_rank, top.data_rank, *ends)


@pytest.mark.distributed
@pytest.mark.skipif(torch.cuda.is_available(), reason="ranks on the CPU")
def test_places_of_four_ranks() -> None:
    layout = ParallelConfig(tensor_model_parallel_size=2, pipeline_model_parallel_size=2)
    assert run_ranks(4, _place, layout) == [
        (0, 0, 0, 0, 1, 0),
        (1, 1, 0, 0, 1, 0),
        (2, 0, 1, 0, 0, 1),
        (3, 1, 1, 0, 0, 1),
    ]


def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert topology.choose_device("auto") == topology.choose_device("cpu") == "cpu"
    with pytest.raises(UserError, match="has no usable GPU; set it to auto or cpu"):
        topology.choose_device("cuda")


def test_cpu_ranks_beside_a_gpu_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert topology.choose_device("auto") == topology.choose_device("cuda") == "cuda"
    with pytest.raises(UserError, match="CUDA_VISIBLE_DEVICES"):
        topology.choose_device("cpu")


def test_world_size_is_torchruns_or_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert topology.world_size_from_environment() == 1
    monkeypatch.setenv("WORLD_SIZE", "6")
    assert topology.world_size_from_environment() == 6
