"""All checks of a device, one after another, as lines of one page."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial

import torch

from megatron_vlm.training.device_check.decoding import check_decoding
from megatron_vlm.training.device_check.drawn_steps import DrawnSteps, configuration, drawn_steps
from megatron_vlm.training.device_check.libraries import (
    check_driver,
    check_links,
    check_nccl,
    check_recipes,
    fp8_recipes,
)
from megatron_vlm.training.device_check.operators import check_fusion, check_patches
from megatron_vlm.training.device_check.outcome import LeftOutError, Outcome, attempt
from megatron_vlm.training.device_check.speed import check_copy, check_matrices

STEPS = 3
#: of the first loss: what FP8 may be off beside bf16 (weights and batch are the same)
FP8_TOLERANCE = 0.02

Work = Callable[[], str]


def checks(device: torch.device) -> Iterator[tuple[str, Work]]:
    """(name, what to do) of each check that a device of this kind is put to, in the order of the page."""
    on_gpu = device.type == "cuda"
    if on_gpu:
        yield "driver", check_driver
        yield "NCCL", check_nccl
        yield "links", check_links
        yield "FP8 recipes", check_recipes
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        yield f"fusion, {name}", partial(check_fusion, device, dtype)
        yield f"patches, {name}", partial(check_patches, device, dtype)
    yield "JPEGs by DALI", partial(check_decoding, device)
    yield "memory", partial(check_copy, device, 1 << 30 if on_gpu else 1 << 24)
    yield (
        "matrix product",
        partial(check_matrices, device, 8192 if on_gpu else 256, torch.bfloat16 if on_gpu else torch.float32),
    )
    yield from _step_checks(device)


def _step_checks(device: torch.device) -> Iterator[tuple[str, Work]]:
    precision = "bf16" if device.type == "cuda" else "fp32"
    made: list[DrawnSteps] = []

    def plain() -> str:
        made.append(_steps("--parallel.precision", precision))
        return describe(made[0])

    def in_fp8(recipe: str) -> str:
        if device.type != "cuda":
            raise LeftOutError("FP8 needs a GPU")
        if reason := fp8_recipes()[recipe]:
            raise LeftOutError(reason)
        found = _steps("--parallel.precision", "bf16", "--precision.fp8", recipe)
        if not made:
            raise LeftOutError(f"{describe(found)}; the steps in bf16 to compare with failed")
        apart = abs(found.losses[0] / made[0].losses[0] - 1)
        if not apart <= FP8_TOLERANCE:
            raise AssertionError(f"first loss {found.losses[0]:.4f} and in bf16 {made[0].losses[0]:.4f}: {apart:.1%} apart")
        return f"{describe(found)}; first loss {apart:.2%} from bf16's"

    yield f"{STEPS} steps, {precision}", plain
    for recipe in ("delayed", "current", "blockwise", "mxfp8"):
        yield f"{STEPS} steps, fp8 {recipe}", partial(in_fp8, recipe)


def _steps(*overrides: str) -> DrawnSteps:
    size = ["--schedule.global_batch_size", "4", "--schedule.micro_batch_size", "2"]
    return drawn_steps(configuration("tiny", STEPS, [*size, *overrides]), STEPS)


def describe(found: DrawnSteps) -> str:
    """One line. Raises AssertionError where a loss or gradient is no finite number, or the loss of one batch grows."""
    losses = " -> ".join(f"{loss:.4f}" for loss in found.losses)
    if not all(math.isfinite(value) for value in (*found.losses, *found.grad_norms)):
        raise AssertionError(f"losses {losses}, gradient norms {found.grad_norms}: not finite")
    if not found.losses[-1] < found.losses[0]:
        raise AssertionError(f"losses {losses}: the batch was not learnt")
    memory = f", {found.memory / 1e6:.0f} MB" if found.memory else ""
    return f"loss {losses}, layers {found.layer_spec}, {found.seconds[-1] * 1e3:.0f} ms a step{memory}"


def examine(device: torch.device, said: Callable[[Outcome], None] = lambda outcome: None) -> list[Outcome]:
    """Make every check; `said` hears of each as it is done. Joins process groups of its own, see
    `drawn_steps`: for a process that then ends.
    """
    found = []
    for check, work in checks(device):
        found.append(attempt(check, work))
        said(found[-1])
    return found


def line(outcome: Outcome) -> str:
    return f"{outcome.state.upper():<9} {outcome.check:<24} {outcome.words}"
