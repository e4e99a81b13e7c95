"""nvcc compiles every kernel for the GPUs that are built by default, and none spills a register."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

from megatron_vlm.ops import kernels
from megatron_vlm.ops.kernels import Kernels
from tests.scripts import load_script

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "csrc" / "cuda"
GPUS = ("sm_80", "sm_90", "sm_100")

needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc on PATH")


@pytest.fixture(scope="module")
def setup_file() -> ModuleType:
    return load_script(ROOT / "setup.py")


def build(setup_file: ModuleType, folder: Path) -> Path:
    """Runs the build of the CUDA operators alone; the path that the library has to have."""
    from setuptools import Distribution

    command = setup_file.BuildNative(Distribution({"ext_modules": setup_file.cuda_libraries()}))
    command.build_lib, command.build_temp = str(folder / "lib"), str(folder / "temp")
    command.ensure_finalized()
    command.run()
    return folder / "lib" / "megatron_vlm" / "_kernels.so"


@needs_nvcc
@pytest.mark.parametrize("unit", ["fuse.cu", "patchify.cu"])
def test_no_kernel_spills(unit: str, tmp_path: Path) -> None:
    """Prints each kernel's registers: `pytest -s`."""
    flags = [flag for gpu in GPUS for flag in ("-gencode", f"arch=compute_{gpu[3:]},code={gpu}")]
    command = ["nvcc", "-c", "-O3", "--std=c++17", "-Werror", "all-warnings", "-Xptxas", "-v", *flags]
    done = subprocess.run(
        [*command, str(SOURCES / unit), "-o", str(tmp_path / "unit.o")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = re.findall(
        r"Compiling entry function '(\w+)' for '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
        r"(\d+) bytes spill loads.*?Used (\d+) registers",
        done.stderr,
        re.DOTALL,
    )
    for name, gpu, stack, stores, loads, registers in found:
        print(f"{gpu} {registers} registers, {stack} bytes of stack, {stores} + {loads} spilled: {name}")
        assert (int(stack), int(stores), int(loads)) == (0, 0, 0), f"{name} for {gpu} spills"
        # 256 threads a block: more registers than this leave room for fewer than two blocks on a multiprocessor
        assert int(registers) <= 128
    kernels_of_unit = {name for name, *_ in found}
    assert len(kernels_of_unit) >= {"fuse.cu": 17, "patchify.cu": 7}[unit]
    assert {gpu for _, gpu, *_ in found} == set(GPUS)
    assert len(found) == len(kernels_of_unit) * len(GPUS)


@needs_nvcc
@pytest.mark.slow
def test_the_library_that_users_get_loads_without_a_driver(setup_file: ModuleType, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0")
    library = Kernels(build(setup_file, tmp_path))
    assert b"cudaErrorInvalidValue: " in library._library.mvlm_error_string(1)


def compiler_that_fails(folder: Path) -> str:
    path = folder / "nvcc"
    path.write_text('#!/bin/sh\n[ "$1" = --list-gpu-code ] && echo sm_90 && exit\necho "no host compiler" >&2\nexit 1\n')
    path.chmod(0o755)
    return str(path)


def test_without_nvcc_the_library_is_left_out_in_silence(
    setup_file: ModuleType, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(setup_file, "find_nvcc", lambda: None)
    assert not build(setup_file, tmp_path).exists()
    assert "WARNING" not in capsys.readouterr().err
    monkeypatch.setattr(setup_file, "CUDA_REQUIRED", True)
    with pytest.raises(RuntimeError, match="found no nvcc"):
        build(setup_file, tmp_path)


def test_a_failed_build_warns_with_the_reason(setup_file: ModuleType, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    monkeypatch.setattr(setup_file, "find_nvcc", lambda: compiler_that_fails(tmp_path))
    assert not build(setup_file, tmp_path).exists()
    said = capsys.readouterr().err
    assert "WARNING: megatron_vlm/_kernels.so was not built" in said
    assert "no host compiler" in said
    assert "MEGATRON_VLM_SKIP_CUDA=1" in said
    monkeypatch.setattr(setup_file, "CUDA_REQUIRED", True)
    with pytest.raises(RuntimeError, match="nvcc failed:\nno host compiler"):
        build(setup_file, tmp_path)


def test_it_can_be_left_out(setup_file: ModuleType, monkeypatch) -> None:
    monkeypatch.setattr(setup_file, "CUDA_SKIPPED", True)
    assert setup_file.cuda_libraries() == []


KNOWN = {"sm_80", "sm_90", "sm_100"}


@pytest.mark.parametrize(
    ("wanted", "known", "codes"),
    [
        ("", KNOWN, ["sm_80", "sm_90", "sm_100", "compute_100"]),
        ("", {"sm_70", "sm_80", "sm_90"}, ["sm_80", "sm_90", "compute_90"]),
        ("9.0", KNOWN, ["sm_90"]),
        ("8.0 9.0a;12.0+PTX", KNOWN, ["sm_80", "sm_90a", "sm_120", "compute_120"]),
    ],
)
def test_the_list_of_gpus_is_torchs(wanted: str, known: set[str], codes: list[str], setup_file: ModuleType) -> None:
    flags = setup_file.gpu_flags(wanted, known)
    assert flags[::2] == ["-gencode"] * len(codes)
    assert [flag.rpartition("code=")[2] for flag in flags[1::2]] == codes
    assert all(
        flag.startswith(f"arch=compute_{code.rpartition('_')[2]},") for flag, code in zip(flags[1::2], codes, strict=True)
    )


@pytest.mark.parametrize("wanted", ["Hopper", "90", "8.0;native"])
def test_a_gpu_that_is_no_number_is_refused(wanted: str, setup_file: ModuleType) -> None:
    with pytest.raises(RuntimeError, match=r"TORCH_CUDA_ARCH_LIST: .* is not understood"):
        setup_file.gpu_flags(wanted, KNOWN)


def test_the_library_is_looked_for_where_it_is_built(setup_file: ModuleType) -> None:
    from setuptools import Distribution

    build = setup_file.BuildNative(Distribution({"ext_modules": setup_file.cuda_libraries()}))
    build.ensure_finalized()
    assert build.get_ext_filename(setup_file.KERNELS) == str(kernels.LIBRARY.relative_to(kernels.LIBRARY.parents[1]))
