"""Calling the CUDA operators: what is refused before a launch, errors by name, and finding the library."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from megatron_vlm.ops import kernels
from megatron_vlm.ops.dtypes import DTYPE_CODES
from megatron_vlm.ops.kernels import EXPECTED_INTERFACE, FAULTS, Kernels, cuda_kernels, describe_faults
from tests.ops.emulation import SOURCES, emulated_kernels, needs_compiler
from tests.ops.kernel_cases import Fusion, Patching, run_forward, run_patchify


@pytest.fixture
def fresh():
    cuda_kernels.cache_clear()
    yield
    cuda_kernels.cache_clear()


def call(**changed: object) -> None:
    """A good `fuse_forward` of 2 positions, 1 sequence of 4, hidden size 8, but for what is `changed`."""
    arguments: dict[str, object] = {
        "out": torch.empty(2, 1, 8),
        "tokens": torch.zeros(1, 4, dtype=torch.int64),
        "row_index": torch.full((1, 4), -1, dtype=torch.int32),
        "weight": torch.zeros(3, 8),
        "rows": torch.zeros(0, 8),
        "first_position": 0,
        "vocab_start": 0,
        "vocab_size": 3,
        "rows_here": True,
        "fault": torch.zeros(1, dtype=torch.int32),
        "stream": 0,
    }
    emulated_kernels().fuse_forward(**(arguments | changed))  # type: ignore[arg-type]


@needs_compiler
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"weight": torch.zeros(3, 9)}, r"shape \[3, 8\].* was given one of \[3, 9\]"),
        ({"weight": torch.zeros(3, 8, dtype=torch.float64)}, "torch.float32.*torch.float64"),
        ({"tokens": torch.zeros(1, 4, dtype=torch.int32)}, "torch.int64"),
        ({"row_index": torch.zeros(2, 4, dtype=torch.int32)}, r"\[1, 4\]"),
        ({"rows": torch.zeros(1, 8, device="meta")}, "on cpu.*on meta"),
        ({"out": torch.empty(8, 1, 2).transpose(0, 2)}, "contiguous"),
        ({"fault": torch.zeros(2, dtype=torch.int32)}, r"\[1\]"),
    ],
)
def test_a_tensor_of_another_kind_is_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        call(**changed)


@needs_compiler
def test_a_type_that_no_kernel_has_is_refused():
    kind = torch.int32
    with pytest.raises(TypeError, match="dtype int32; it must be one of"):
        call(out=torch.empty(2, 1, 8, dtype=kind), weight=torch.zeros(3, 8, dtype=kind), rows=torch.zeros(0, 8, dtype=kind))


@needs_compiler
@pytest.mark.parametrize("changed", [{"first_position": 3}, {"first_position": -1}, {"vocab_start": -1}])
def test_sizes_that_do_not_fit_are_an_error_by_name(changed):
    with pytest.raises(
        RuntimeError, match=r"mvlm_fuse_forward failed with cudaErrorInvalidValue: invalid argument \(code 1\)"
    ):
        call(**changed)


@needs_compiler
@pytest.mark.parametrize("changed", [{"group": 0}, {"patch_size": 2049, "dtype": torch.float16}])
def test_patches_that_cannot_be_are_an_error_by_name(changed):
    case = replace(Patching(patch_size=2), **changed)
    with pytest.raises(RuntimeError, match="mvlm_patchify failed with cudaErrorInvalidValue"):
        run_patchify(emulated_kernels(), case, torch.tensor([[0, 4, 4, 0]]), 0, case.pixels(48))


@needs_compiler
def test_the_emulation_refuses_a_launch_that_is_too_large():
    emulated = emulated_kernels()
    case = Fusion()
    with emulated.shaped((1, 1), (64, 17), False), pytest.raises(RuntimeError, match="cudaErrorInvalidConfiguration"):
        run_forward(emulated, case, *case.indices())


def test_numbers_are_those_of_the_header():
    header = (SOURCES / "kernels.h").read_text(encoding="utf-8")
    for name, number in (("FLOAT32", torch.float32), ("BFLOAT16", torch.bfloat16), ("FLOAT16", torch.float16)):
        assert f"MVLM_{name} = {DTYPE_CODES[number]}" in header
    for bit in FAULTS:
        assert f"= {bit}," in header
    assert f"int mvlm_interface(void) {{ return {EXPECTED_INTERFACE}; }}" in (SOURCES / "interface.cu").read_text()


def test_faults_in_words():
    assert describe_faults(0) == ""
    assert describe_faults(5) == "a token id is outside the vocabulary; two positions name the same row"


@needs_compiler
def test_a_library_of_other_sources_is_refused(monkeypatch):
    path = emulated_kernels()._library._name
    assert path
    monkeypatch.setattr(kernels, "EXPECTED_INTERFACE", EXPECTED_INTERFACE + 1)
    monkeypatch.setattr(kernels.ctypes, "CDLL", lambda _: emulated_kernels()._library)
    with pytest.raises(RuntimeError, match=f"has interface {EXPECTED_INTERFACE}, but this package needs"):
        Kernels(path)


def test_without_cuda_there_are_none_and_nothing_is_said(fresh, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert cuda_kernels() is None


def test_with_cuda_a_missing_library_warns_once_with_the_remedy(fresh, monkeypatch, tmp_path: Path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(kernels, "LIBRARY", tmp_path / "_kernels.so")
    with pytest.warns(RuntimeWarning, match="pip install --no-build-isolation") as caught:
        assert [cuda_kernels(), cuda_kernels()] == [None, None]
    assert len(caught) == 1
    assert "_kernels.so" in str(caught[0].message)
