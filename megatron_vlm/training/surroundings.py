"""What a machine has for training, and what a run makes of it: libraries, devices, native code, room."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from packaging.requirements import Requirement

from megatron_vlm.data.decoding.decoder import AUTOMATIC, LIBRARIES

#: below this loaders of large pictures and NCCL are known to fail; Docker gives 64 MB unless --ipc=host or --shm-size
_LEAST_SHARED = 1 << 30


@dataclass(frozen=True)
class Finding:
    """One line of the table.

    Attributes:
        part: what was looked for.
        found: what is there.
        chosen: what a run does with it; "" where there is nothing to choose.
        problem: why nothing can be trained, and the remedy; "" where all is well.
    """

    part: str
    found: str
    chosen: str = ""
    problem: str = ""


def survey() -> list[Finding]:
    """Everything that `megatron-vlm doctor` prints. Loads torch and the native code, starts nothing."""
    return [
        Finding(
            "system", f"{platform.system()} {platform.release()}, {os.cpu_count()} cores, Python {sys.version.split()[0]}"
        ),
        *_devices(),
        _core(),
        *_optional(),
        _native(),
        _kernels(),
        _decoders(),
        _shared_memory(),
    ]


def _system() -> Finding:
    python = sys.version.split()[0]
    return Finding("system", f"{platform.system()} {platform.release()}, {os.cpu_count()} cores, Python {python}")


def _version(*names: str) -> str | None:
    for name in names:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def _devices() -> Iterator[Finding]:
    import torch

    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
    yield Finding("torch", f"{torch.__version__}, {built}")
    if not torch.cuda.is_available():
        yield Finding("GPU", "none that can be used", "gloo ranks on the CPU: for first runs and tests, not for speed")
        return
    for number in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(number)
        kind = f"{about.name}, sm_{about.major}{about.minor}, {about.total_memory / 1e9:.0f} GB"
        yield Finding(f"GPU {number}", kind, "bf16" if about.major >= 8 else "fp32: no bf16 before sm_80")


def _core() -> Finding:
    found, wanted = _version("megatron-core"), _wanted_core()
    if found is None:
        return Finding("megatron-core", "missing", problem=f"pip install '{wanted or 'megatron-core'}'")
    if wanted is not None and not wanted.specifier.contains(found):
        return Finding("megatron-core", found, problem=f"this package needs {wanted.specifier}: pip install '{wanted}'")
    return Finding("megatron-core", found, "parallel layers, schedules, DDP, optimiser, checkpoints")


def _wanted_core() -> Requirement | None:
    """What this package says it needs; None where it runs from a folder that was never installed."""
    try:
        lines = metadata.requires("megatron-vlm") or []
    except metadata.PackageNotFoundError:
        return None
    return next((wanted for line in lines if (wanted := Requirement(line)).name == "megatron-core"), None)


def _optional() -> Iterator[Finding]:
    import torch

    on_gpu = torch.cuda.is_available()
    engine = _version("transformer-engine", "transformer_engine")
    layers = "its layers and Adam" if engine and on_gpu else "PyTorch's attention and norms (layer_spec host)"
    yield Finding("Transformer Engine", engine or "missing", layers)
    attention = _version("flash-attn", "flash_attn")
    used = "by Transformer Engine" if engine and attention and on_gpu else "not used"
    yield Finding("flash-attention", attention or "missing", used)
    # apex on PyPI is another project: NVIDIA's has this extension
    apex = "NVIDIA's" if find_spec("apex") and find_spec("amp_C") else "missing"
    adam = "Transformer Engine's" if engine and on_gpu else "apex's" if apex != "missing" and on_gpu else "torch's"
    yield Finding("apex", apex, f"Adam is {adam}")
    fused = ["Transformer Engine's rotary positions and cross-entropy"] if engine else []
    if find_spec("fused_weight_gradient_mlp_cuda"):
        fused.append("apex's sums of weight gradients")
    yield Finding("fused kernels", ", ".join(fused) or "none", "by performance.*" if fused and on_gpu else "not used")


def _native() -> Finding:
    from megatron_vlm.ops.native import native_operators

    if native_operators() is None:
        return Finding("native operators", "missing", "numpy: slow; build them with pip install --no-build-isolation -e .")
    return Finding("native operators", "built", "packing, assembly, fusion, patches")


def _kernels() -> Finding:
    import torch

    from megatron_vlm.ops.kernels import LIBRARY, Kernels

    on_gpu = torch.cuda.is_available()
    try:
        Kernels(LIBRARY)
    except (OSError, RuntimeError) as error:
        without = "PyTorch's operators: slower" if on_gpu else "not needed without a GPU"
        return Finding("CUDA kernels", f"missing ({str(error)[:80]})" if LIBRARY.exists() else "missing", without)
    return Finding("CUDA kernels", "built", "fusion and patches" if on_gpu else "not needed without a GPU")


def _decoders() -> Finding:
    there = [name for name, (module, _) in LIBRARIES.items() if find_spec(module.partition(".")[0]) and find_spec(module)]
    chosen = next((name for name in AUTOMATIC if name in there), "")
    problem = "" if chosen else "no decoder for pictures: pip install simplejpeg pillow"
    return Finding("decoders", ", ".join(there) or "none", f"{chosen}; others by data.pictures.decoder", problem)


def _shared_memory() -> Finding:
    place = Path("/dev/shm")
    if not place.is_dir():
        return Finding("shared memory", "no /dev/shm", "loaders use memory of their own")
    free = shutil.disk_usage(place).free
    small = free < _LEAST_SHARED
    advice = "little: start containers with --ipc=host or --shm-size=8g" if small else "enough"
    return Finding("shared memory", f"{free / 1e9:.1f} GB free in /dev/shm", advice)


def as_table(findings: list[Finding]) -> str:
    """Aligned lines, problems after them."""
    width = max(len(finding.part) for finding in findings)
    lines = []
    for finding in findings:
        chosen = f"  ->  {finding.chosen}" if finding.chosen else ""
        lines.append(f"{finding.part:<{width}}  {finding.found}{chosen}")
    lines += [f"PROBLEM: {finding.part}: {finding.problem}" for finding in findings if finding.problem]
    return "\n".join(lines)
