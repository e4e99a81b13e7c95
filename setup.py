"""Builds the optional native extension `megatron_vlm._native`; everything else is in pyproject.toml.

A machine without a C++17 compiler still gets a working package: the numpy references serve, slower, and say
so. Set MEGATRON_VLM_REQUIRE_NATIVE=1 to have a failed build stop the installation instead, as images and
continuous integration do.
"""

from __future__ import annotations

import os
import sys
from glob import glob

from setuptools import setup
from setuptools.command.build_ext import build_ext
from setuptools.extension import Extension

REQUIRED = os.environ.get("MEGATRON_VLM_REQUIRE_NATIVE", "0") not in ("", "0")


def warn(reason: object) -> None:
    """Print why there is no extension, what that costs and the remedy. (pip shows it with -v.)"""
    print(
        "\n".join(
            (
                "*" * 100,
                "WARNING: megatron_vlm._native was not built; slower numpy code will serve in its place.",
                f"Reason: {reason}",
                "Remedy: install pybind11, Python headers and a C++17 compiler (g++ 9 or newer), then run:",
                "pip install --no-build-isolation --no-deps -e .",
                "*" * 100,
            )
        ),
        file=sys.stderr,
    )


class BuildNative(build_ext):
    """`build_ext` that turns a failed compilation into a warning, unless the extension is required."""

    def build_extension(self, ext: Extension) -> None:
        try:
            super().build_extension(ext)
        except Exception as error:  # compilers fail in many ways: absent, too old, no headers
            if REQUIRED:
                raise
            warn(error)


def native_extensions() -> list[Extension]:
    """Describe the extension; an empty list where pybind11 is absent and the extension is not required."""
    try:
        from pybind11.setup_helpers import Pybind11Extension
    except ImportError as error:
        if REQUIRED:
            raise
        warn(error)
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


setup(ext_modules=native_extensions(), cmdclass={"build_ext": BuildNative})
