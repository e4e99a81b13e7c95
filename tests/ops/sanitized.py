"""Compiling what csrc holds under sanitizers, for the tests that run it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

CSRC = Path(__file__).resolve().parents[2] / "csrc"
HERE = Path(__file__).parent

#: the marks of every test that compiles
MARKS = [
    pytest.mark.sanitize,
    pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler"),
]


def compile_driver(target: Path, *sources: Path, sanitizers: str = "address,undefined") -> None:
    flags = ["-std=c++17", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off", "-pthread"]
    flags += [f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all"]
    subprocess.run(
        ["c++", *flags, f"-I{CSRC}", *map(str, sources), "-o", str(target)],
        check=True,
        capture_output=True,
        text=True,
    )


def run_driver(target: Path) -> list[int]:
    """Return the numbers that the driver prints; it has to end well."""
    result = subprocess.run([target], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return [int(number) for number in result.stdout.split()]
