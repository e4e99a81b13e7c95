"""The host platform answers megatron-core and nobody else, and its table was asked about every CUDA site there is."""

from __future__ import annotations

import importlib
import json
from importlib.metadata import version
from types import FunctionType
from typing import Any

import pytest
import torch

from megatron_vlm.errors import UserError
from megatron_vlm.parallel import host
from tests.distributed.ranks import run_ranks
from tests.parallel import cuda_sites

NO_CUDA = (AssertionError, RuntimeError)

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the host platform is for machines without a GPU")


def _as_core(function: Any) -> Any:
    """The same code as if it stood in a module of megatron-core."""
    return FunctionType(function.__code__, {**function.__globals__, "__name__": "megatron.core.somewhere"})


def _asks_for_cuda() -> list[Any]:
    buffer = torch.zeros(2, 3, device="cuda:0", pin_memory=True)
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        buffer += torch.ones(3, device=torch.cuda.current_device())
    torch.cuda.current_stream().wait_stream(torch.cuda.default_stream())
    return [buffer.cuda().tolist(), buffer.type(), torch.empty_like(buffer, device="cuda").device.type]


def _answers_core_only() -> list[Any]:
    host.install()
    for ask in (
        torch.cuda.current_device,
        torch.cuda.Stream,
        lambda: torch.zeros(1, device="cuda"),
        lambda: torch.zeros(1).cuda(),
    ):
        with pytest.raises(NO_CUDA):
            ask()
    assert torch.zeros(1).type() == "torch.FloatTensor"
    assert torch.cuda.Stream | None  # still a class, as annotations elsewhere want it
    assert not isinstance(1, torch.cuda.Stream)
    return _as_core(_asks_for_cuda)()


def test_core_is_answered_and_a_stray_call_is_not() -> None:
    assert run_ranks(1, _answers_core_only) == [[[[1.0] * 3] * 2, "torch.cuda.FloatTensor", "cpu"]]


def _devices_asked_for() -> list[str]:
    host.install()
    with torch.device("meta"):
        made = [torch.empty(2), torch.zeros(2), torch.ones(2), torch.full((2,), 1.0), torch.tensor([1.0]), torch.arange(2)]
    return [tensor.device.type for tensor in made]


def test_other_libraries_get_the_device_that_they_ask_for() -> None:
    """transformers makes models under `with torch.device("meta")`: on the CPU, what it fills in later would be lost."""
    assert run_ranks(1, _devices_asked_for) == [["meta"] * 6]


def _install_twice() -> bool:
    replaced = lambda: [torch.zeros, torch.cuda.current_device, torch.Tensor.type, torch.Tensor.cuda]  # noqa: E731
    assert not host.installed()
    before = replaced()
    host.install()
    once = replaced()
    host.install()
    assert all(a is not b for a, b in zip(before, once, strict=True))
    return host.installed() and all(a is b for a, b in zip(once, replaced(), strict=True))


def test_installing_twice_is_installing_once() -> None:
    assert run_ranks(1, _install_twice) == [True]


def _beside_a_gpu() -> tuple[str, bool]:
    torch.cuda.is_available = lambda: True
    before = torch.zeros
    with pytest.raises(UserError) as refusal:
        host.install()
    return str(refusal.value), torch.zeros is before and not host.installed()


def test_it_does_not_install_beside_a_gpu() -> None:
    message, untouched = run_ranks(1, _beside_a_gpu)[0]
    assert "set parallel.device to cuda or auto" in message
    assert untouched


def _without_a_name() -> str:
    random = importlib.import_module("megatron.core.tensor_parallel.random")
    del random._get_cuda_rng_state  # type: ignore[attr-defined]
    with pytest.raises(UserError) as refusal:
        host.install()
    return str(refusal.value)


def test_a_core_without_a_name_of_the_table_is_refused() -> None:
    message = run_ranks(1, _without_a_name)[0]
    assert "megatron.core.tensor_parallel.random has no _get_cuda_rng_state" in message
    assert f"install megatron-core {host.COVERED_RELEASES[0]}" in message


@pytest.fixture(scope="module")
def found() -> dict[str, list[str]]:
    return cuda_sites.inventory()


def test_every_cuda_site_of_this_release_was_read(found: dict[str, list[str]]) -> None:
    release = version("megatron-core")
    path = cuda_sites.snapshot_path(release)
    known = [json.loads(p.read_text()) for p in path.parent.glob("cuda_sites_*.json")]
    new = sorted(name for name in found if all(name not in snapshot for snapshot in known))
    remedy = "read what is new, extend megatron_vlm/parallel/host.py, then: python tests/parallel/cuda_sites.py"
    assert not new, f"megatron-core {release} addresses CUDA by names that no release before did: {new}; {remedy}"
    assert path.is_file(), f"megatron-core {release} has no snapshot of its CUDA sites; {remedy}"
    assert json.loads(path.read_text()) == found, f"the CUDA sites are not those of {path.name}; {remedy}"
    assert release in host.COVERED_RELEASES


def test_the_table_holds_nothing_that_core_does_not_use(found: dict[str, list[str]]) -> None:
    assert {f"torch.cuda.{name}" for name in (*host._CUDA_CALLS, "Stream")} <= found.keys()
    assert {".cuda", "'cuda'", "pin_memory="} <= found.keys()


def test_the_scan_sees_each_kind_of_site_and_no_docstring() -> None:
    source = '''
"""cuda"""
from torch.cuda import Event
x = torch.cuda.memory.stats()
y = x.module.cuda()
z = torch.empty(1, device="cuda:1", pin_memory=True)
if z.type() == "torch.cuda.HalfTensor" or z.is_cuda: "cuda"
'''
    expected = ["from torch.cuda import Event", "torch.cuda.memory", ".cuda", "'cuda:1'", "pin_memory=", ".is_cuda"]
    assert sorted(cuda_sites.sites(source)) == sorted([*expected, "'torch.cuda.HalfTensor'"])
