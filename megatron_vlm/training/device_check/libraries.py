"""The driver, NCCL, links between GPUs, and the FP8 recipes that Transformer Engine has for this chip."""

from __future__ import annotations

import os
import shutil
import subprocess

import torch

from megatron_vlm.training.device_check.outcome import LeftOutError

#: recipe -> what FP8GlobalStateManager of Transformer Engine is asked
RECIPES = {
    "delayed": "is_fp8_available",
    "current": "is_fp8_available",
    "blockwise": "is_fp8_block_scaling_available",
    "mxfp8": "is_mxfp8_available",
}
_FIELDS = (
    "index,name,driver_version,memory.used,memory.total,temperature.gpu,clocks.sm,clocks.max.sm,"
    "ecc.errors.uncorrected.volatile.total"
)


def check_driver() -> str:
    """What nvidia-smi says of each GPU, one line each: version, memory, temperature, clocks, memory errors."""
    program = shutil.which("nvidia-smi")
    if program is None:
        raise LeftOutError("there is no nvidia-smi on PATH")
    asked = [program, f"--query-gpu={_FIELDS}", "--format=csv,noheader"]
    answer = subprocess.run(asked, capture_output=True, text=True, timeout=60, check=False)
    if answer.returncode:
        raise RuntimeError(f"nvidia-smi ends with {answer.returncode}: {(answer.stdout + answer.stderr).strip()[:150]}")
    return "; ".join(answer.stdout.strip().splitlines())


def check_nccl() -> str:
    if not torch.distributed.is_nccl_available():
        raise RuntimeError("this PyTorch was built without NCCL: no run of several GPUs can start")
    version: tuple[int, ...] = torch.cuda.nccl.version()
    settings = {name: value for name, value in sorted(os.environ.items()) if name.startswith("NCCL_")}
    said = f"; set here: {', '.join(f'{name}={value}' for name, value in settings.items())}" if settings else ""
    return ".".join(map(str, version)) + said


def check_links() -> str:
    count = torch.cuda.device_count()
    if count < 2:
        raise LeftOutError("there is one GPU")
    apart = [
        f"{one}-{other}"
        for one in range(count)
        for other in range(one + 1, count)
        if not torch.cuda.can_device_access_peer(one, other)
    ]
    if apart:
        return f"no direct access between GPUs {', '.join(apart)}: tensor parallelism will be slow across them"
    return f"each of {count} GPUs reaches the others' memory"


def fp8_recipes() -> dict[str, str]:
    """Recipe -> why this chip cannot, "" where it can. Raises LeftOutError without Transformer Engine."""
    try:
        from transformer_engine.pytorch.fp8 import FP8GlobalStateManager
    except Exception as error:  # an engine that is built for another torch raises whatever its loader does
        raise LeftOutError(f"Transformer Engine does not import: {str(error)[:120]}") from None
    found = {}
    for recipe, question in RECIPES.items():
        ask = getattr(FP8GlobalStateManager, question, None)
        able, reason = ask() if ask is not None else (False, "this release of Transformer Engine does not have it")
        found[recipe] = "" if able else str(reason).strip() or "not on this chip"
    return found


def check_recipes() -> str:
    found = fp8_recipes()
    able = [recipe for recipe, reason in found.items() if not reason]
    unable = [f"{recipe} ({reason})" for recipe, reason in found.items() if reason]
    return f"allowed: {', '.join(able) or 'none'}" + (f"; not: {', '.join(unable)}" if unable else "")


def why_no_gpu() -> str:
    """Why PyTorch can use no GPU here, and what to do. For a machine where it cannot."""
    if torch.version.cuda is None:
        return "this PyTorch was built without CUDA; install a CUDA build of it, or use the image in Dockerfile"
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return "CUDA_VISIBLE_DEVICES hides every GPU; unset it"
    if shutil.which("nvidia-smi") is None:
        return "there is no NVIDIA driver (no nvidia-smi); install it, or start the container with --gpus all"
    try:
        torch.cuda.init()
    except RuntimeError as error:
        return f"the driver is there, and PyTorch says: {(str(error).splitlines() or [''])[0]}"
    return "the driver is there and shows no device; see what nvidia-smi says"
