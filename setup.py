"""Builds the two optional native parts; everything else is in pyproject.toml.

`megatron_vlm._native` needs a C++17 compiler. A machine without one still gets a working package: the numpy
references serve, slower, and say so. MEGATRON_VLM_REQUIRE_NATIVE=1 has a failed build stop the installation
instead, as images and continuous integration do.

`megatron_vlm/_kernels.so`, the CUDA operators, needs nvcc: CUDA_HOME's, or the first on PATH, or that of
/usr/local/cuda. Without one it is left out, and PyTorch code serves. TORCH_CUDA_ARCH_LIST chooses the GPUs ("9.0;10.0+PTX");
MEGATRON_VLM_REQUIRE_CUDA=1 stops the installation where it cannot be built, MEGATRON_VLM_SKIP_CUDA=1 leaves it out.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from glob import glob
from pathlib import Path

from setuptools import setup
from setuptools.command.build_ext import build_ext
from setuptools.extension import Extension


def is_set(name: str) -> bool:
    return os.environ.get(name, "0") not in ("", "0")


REQUIRED = is_set("MEGATRON_VLM_REQUIRE_NATIVE")
CUDA_REQUIRED = is_set("MEGATRON_VLM_REQUIRE_CUDA")
CUDA_SKIPPED = is_set("MEGATRON_VLM_SKIP_CUDA")
KERNELS = "megatron_vlm._kernels"
#: what is built where TORCH_CUDA_ARCH_LIST says nothing: A100, H100, B200, and PTX for what comes after
DEFAULT_GPUS = ("8.0", "9.0", "10.0")


def warn(missing: str, costs: str, reason: object, remedy: str) -> None:
    """Print what is missing, why, what that costs and the remedy. (pip shows it with -v.)"""
    lines = (
        f"WARNING: {missing} was not built; {costs}.",
        f"Reason: {reason}",
        f"Remedy: {remedy}, then run:",
        "pip install --no-build-isolation --no-deps -e .",
    )
    print("\n".join(("*" * 100, *lines, "*" * 100)), file=sys.stderr)


def warn_native(reason: object) -> None:
    remedy = "install pybind11, Python headers and a C++17 compiler (g++ 9 or newer)"
    warn("megatron_vlm._native", "slower numpy code will serve in its place", reason, remedy)


def warn_cuda(reason: object) -> None:
    remedy = "install the CUDA toolkit and a C++17 compiler that its nvcc accepts, or set MEGATRON_VLM_SKIP_CUDA=1"
    warn("megatron_vlm/_kernels.so", "PyTorch code will serve in place of the CUDA operators", reason, remedy)


def find_nvcc() -> str | None:
    """The compiler of the toolkit that torch's own extensions would be built with."""
    for root in filter(None, (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"))):
        if (path := Path(root) / "bin" / "nvcc").exists():
            return str(path)
    return shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")


def gpu_flags(wanted: str, known: set[str]) -> list[str]:
    """nvcc's flags for a TORCH_CUDA_ARCH_LIST; where it is empty, for those of the default that this nvcc knows.

    Args:
        wanted: such as "8.0 9.0a;10.0+PTX".
        known: what `nvcc --list-gpu-code` lists: "sm_80" and so on.
    """
    names = [name for name in re.split(r"[;,\s]+", wanted) if name]
    if not names:
        names = [gpu for gpu in DEFAULT_GPUS if f"sm_{gpu.replace('.', '')}" in known]
        if not names:
            raise RuntimeError(f"this nvcc knows none of {', '.join(DEFAULT_GPUS)}; set TORCH_CUDA_ARCH_LIST")
        names[-1] += "+PTX"
    flags = []
    for name in names:
        parts = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", name)
        if parts is None:
            raise RuntimeError(f"TORCH_CUDA_ARCH_LIST: {name} is not understood; give numbers, as in 8.0;9.0;10.0+PTX")
        number = "".join(parts.group(1, 2, 3))
        flags += ["-gencode", f"arch=compute_{number},code=sm_{number}"]
        if parts.group(4):
            flags += ["-gencode", f"arch=compute_{number},code=compute_{number}"]
    return flags


class CudaLibrary(Extension):
    """A library in plain C, built by nvcc, that no Python headers are needed for."""


class BuildNative(build_ext):
    """`build_ext` that turns a failed compilation into a warning, unless what failed is required."""

    def get_ext_filename(self, fullname: str) -> str:
        # The library is loaded by ctypes, and is the same for every Python.
        if fullname.rpartition(".")[2] == KERNELS.rpartition(".")[2]:
            return os.path.join(*fullname.split(".")) + ".so"
        return super().get_ext_filename(fullname)

    def build_extension(self, ext: Extension) -> None:
        is_cuda = isinstance(ext, CudaLibrary)
        try:
            if is_cuda:
                self.build_cuda(ext)
            else:
                super().build_extension(ext)
        except Exception as error:  # compilers fail in many ways: absent, too old, no headers
            if CUDA_REQUIRED if is_cuda else REQUIRED:
                raise
            (warn_cuda if is_cuda else warn_native)(error)

    def build_cuda(self, ext: Extension) -> None:
        nvcc = find_nvcc()
        if nvcc is None:
            if CUDA_REQUIRED:
                raise RuntimeError("found no nvcc in CUDA_HOME, on PATH or in /usr/local/cuda/bin")
            return  # a machine without CUDA: nothing is amiss
        listed = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True, check=True).stdout
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        command = [nvcc, "-shared", "-O3", "--std=c++17", "-Xcompiler", "-fPIC,-Wall,-Wextra", "--threads", "0"]
        # The runtime is linked in: the library then fits any torch, and loads where there is no driver.
        command += ["--cudart", "static", *gpu_flags(os.environ.get("TORCH_CUDA_ARCH_LIST", ""), set(listed.split()))]
        command += [*ext.sources, "-o", str(target)]
        print(" ".join(command))
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            target.unlink(missing_ok=True)
            said = (done.stderr + done.stdout).strip().splitlines()
            raise RuntimeError("nvcc failed:\n" + "\n".join(said[-20:]))


def native_extensions() -> list[Extension]:
    """Describe the extension; an empty list where pybind11 is absent and the extension is not required."""
    try:
        from pybind11.setup_helpers import Pybind11Extension
    except ImportError as error:
        if REQUIRED:
            raise
        warn_native(error)
        return []
    return [
        Pybind11Extension(
            "megatron_vlm._native",
            sources=sorted(glob("csrc/*.cpp")),
            depends=sorted(glob("csrc/*.h")),
            include_dirs=["csrc"],
            cxx_std=17,
            # no contraction: results would depend on whether the processor has fused multiply-add
            extra_compile_args=["-O3", "-ffp-contract=off", "-pthread", "-Wall", "-Wextra"],
            extra_link_args=["-pthread"],
            # setuptools then does not look for the file of an extension that was not built
            optional=not REQUIRED,
        )
    ]


def cuda_libraries() -> list[Extension]:
    if CUDA_SKIPPED:
        return []
    headers = glob("csrc/cuda/*.h") + glob("csrc/cuda/*.cuh")
    return [CudaLibrary(KERNELS, sorted(glob("csrc/cuda/*.cu")), depends=sorted(headers), optional=not CUDA_REQUIRED)]


if __name__ == "__main__":
    setup(ext_modules=native_extensions() + cuda_libraries(), cmdclass={"build_ext": BuildNative})
