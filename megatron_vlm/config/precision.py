"""FP8: the recipe of the matrix products, and what stays in bf16 beside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Recipe = Literal["none", "delayed", "current", "blockwise", "mxfp8"]

#: recipe -> compute capability of the first chip that has it: Transformer Engine 2.20 refuses older ones (Ada 8.9, Hopper
#: 9.0, Blackwell 10.0)
LEAST_CAPABILITY: dict[Recipe, tuple[int, int]] = {
    "delayed": (8, 9),
    "current": (8, 9),
    "blockwise": (9, 0),
    "mxfp8": (10, 0),
}
#: from here on (consumer Blackwell) Transformer Engine 2.20 has no MXFP8
_NO_MXFP8_FROM = (12, 0)

#: recipe -> what both sides of every matrix and the rows of its input are multiples of: cuBLAS wants 16, and scales are kept
#: for blocks of 32 (MXFP8) or 128 values
BLOCK: dict[Recipe, int] = {"delayed": 16, "current": 16, "blockwise": 128, "mxfp8": 32}


@dataclass(frozen=True)
class PrecisionConfig:
    """Matrix products of the language blocks in FP8, by Transformer Engine. Weights, norms, attention, the embedding, the
    output layer and the projector stay in bf16, gradients are summed and the optimiser works in fp32."""

    #: how values are scaled into FP8: by the largest of past steps (delayed), of the tensor (current), of blocks of 1 x 128
    #: and 128 x 128 (blockwise) or of 32 with a power of two (mxfp8). Chips have them from compute capability 8.9, 8.9, 9.0
    #: and 10.0 on. none: bf16
    fp8: Recipe = "none"
    #: hybrid: e4m3 forward and e5m2 for gradients; e4m3: both
    fp8_format: Literal["hybrid", "e4m3"] = "hybrid"
    #: delayed: micro-batches whose largest values are kept; checkpoints are without them, and a resumed run begins with none
    fp8_history: int = 1024
    #: delayed: the largest of them, or the newest
    fp8_amax: Literal["max", "most_recent"] = "max"
    #: language layers at the start and at the end of the model that stay in bf16 (not with delayed)
    first_layers_in_bf16: int = 0
    last_layers_in_bf16: int = 0
    #: the vision encoder's layers in FP8 too
    fp8_vision: bool = False


def chip_problem(recipe: Recipe, capability: tuple[int, int] | None) -> str | None:
    """Why a chip cannot run a recipe, and the nearest that it can; None where it can.

    Args:
        capability: CUDA compute capability; None: no GPU.
    """
    if recipe == "none":
        return None
    if capability is None:
        return f"precision.fp8: {recipe} needs a GPU, and there is none; set it to none"
    here = ".".join(map(str, capability))
    if recipe == "mxfp8" and capability >= _NO_MXFP8_FROM:
        return f"precision.fp8: Transformer Engine has no mxfp8 on compute capability {here}; nearest that runs: current"
    if capability >= LEAST_CAPABILITY[recipe]:
        return None
    least = ".".join(map(str, LEAST_CAPABILITY[recipe]))
    nearest = next((r for r in ("blockwise", "current") if capability >= LEAST_CAPABILITY[r]), "none (bf16)")
    return f"precision.fp8: {recipe} needs compute capability {least}, and this GPU has {here}; nearest that runs: {nearest}"
