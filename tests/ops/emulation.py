"""The CUDA operators, built for the CPU with the emulation of csrc/cuda: the kernels as they are, without a GPU."""

from __future__ import annotations

import ctypes
import functools
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from megatron_vlm.ops.kernels import Kernels

SOURCES = Path(__file__).resolve().parents[2] / "csrc" / "cuda"
UNITS = ("fuse.cu", "patchify.cu", "interface.cu")
#: as nvcc compiles them: no product is joined with a sum
FLAGS = ("-std=c++17", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off", "-fno-strict-aliasing")
SANITIZERS = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")

needs_compiler = pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler")


def compile_for_cpu(
    target: Path, flags: Sequence[str], sources: Path = SOURCES, units: Sequence[str] = UNITS, driver: Path | None = None
) -> Path:
    """Compile `units`, and `driver` with them, into `target`."""
    files = [str(sources / unit) for unit in units] + ([str(driver)] if driver else [])
    command = ["c++", *FLAGS, *flags, f"-I{sources}", "-x", "c++", *files, "-o", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return target


class EmulatedKernels(Kernels):
    """`Kernels` whose launches can be given any size and order."""

    def __init__(self, path: Path):
        super().__init__(path)
        self._library.mvlm_emulation_set.argtypes = [ctypes.c_uint] * 4 + [ctypes.c_int]

    @contextmanager
    def shaped(self, grid: tuple[int, int], block: tuple[int, int], backwards: bool) -> Iterator[None]:
        """Launch with these sizes, (x, y) each, where 0 is what the operator would take; threads and blocks in order or from
        the last to the first."""
        self._library.mvlm_emulation_set(*grid, *block, int(backwards))
        try:
            yield
        finally:
            self._library.mvlm_emulation_set(0, 0, 0, 0, 0)


@functools.cache
def emulated_kernels() -> EmulatedKernels:
    """Built once a session, from the sources as they are."""
    # The library stays loaded, its file need not stay.
    with tempfile.TemporaryDirectory(prefix="kernels-") as folder:
        return EmulatedKernels(compile_for_cpu(Path(folder) / "kernels.so", ["-O2", "-shared", "-fPIC"]))
