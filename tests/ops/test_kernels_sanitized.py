"""The emulated CUDA operators under the address and undefined-behaviour sanitizers."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.ops.emulation import SANITIZERS, compile_for_cpu, needs_compiler

pytestmark = [pytest.mark.sanitize, needs_compiler]


def test_no_kernel_reaches_beside_its_buffers(tmp_path: Path) -> None:
    driver = compile_for_cpu(tmp_path / "driver", SANITIZERS, driver=Path(__file__).with_name("kernels_driver.cpp"))
    done = subprocess.run([driver], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    without_fault, with_fault = map(int, done.stdout.split())
    assert without_fault > 500
    assert with_fault > 500
    assert without_fault + with_fault == 3000
