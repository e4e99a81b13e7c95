"""How much of its peak the hardware gives: few factors, stated, and fitted to published runs or to a run of one's own."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from megatron_vlm.errors import DataError


@dataclass(frozen=True)
class Efficiency:
    """Shares of a peak, 0 to 1, unless said otherwise.

    `matrix` and `matrix_fp8` are fitted to the published runs in `published.py` (`megatron-vlm plan published` prints the
    errors that are left); the others are taken as they stand and were measured by nobody here.
    """

    #: large matrix products in bf16 and fp32, of the peak of their precision
    matrix: float = 0.58
    #: large matrix products in fp8, quantisation included
    matrix_fp8: float = 0.53
    #: products of attention, of the bf16 peak
    attention: float = 0.5
    #: matrix products of the encoder, whose layers are narrow; of the peak
    vision: float = 0.5
    #: streaming kernels (norms, activations, residuals, Adam), of the memory's bandwidth
    memory: float = 0.8
    #: collectives inside a node, of one-way NVLink
    node: float = 0.75
    #: collectives between nodes, of the network ports
    network: float = 0.8
    #: of a gradient reduction or weight gather with overlap on, the share that can hide behind a pass
    overlap: float = 0.9
    #: of a tensor-parallel exchange with user-buffer overlap on, the share that hides behind its matrix product
    tensor_overlap: float = 0.6
    #: seconds of gap that each kernel of a layer costs
    kernel_gap: float = 1.5e-6
    #: seconds that each node of a ring adds to a collective over it
    node_latency: float = 3e-6
    #: seconds of a step outside of its passes: clipping, the report, the next batch's start
    step_overhead: float = 0.01


#: by GPU. a100 in bf16: fitted to Megatron-LM's tables of 2021 and 2022. h100 and b200 in fp8: to Megatron-Bridge's. h100 in
#: bf16: to the two Megatron-LM rows of AXLearn's table 3 (arXiv 2507.05411), whose layouts are not told. h200 is taken for
#: an h100, and so is b200 in bf16: no dense run of these was found
_FITTED = {
    "a100": Efficiency(matrix=0.74),
    "h100": Efficiency(matrix=0.58, matrix_fp8=0.53),
    "h200": Efficiency(matrix=0.58, matrix_fp8=0.53),
    "b200": Efficiency(matrix=0.58, matrix_fp8=0.46),
}


def efficiency_of(gpu: str) -> Efficiency:
    """The factors for a GPU of `hardware.HARDWARE`."""
    return _FITTED.get(gpu, Efficiency())


def write_efficiency(efficiency: Efficiency, path: Path, measured: str) -> None:
    """As json, with where it comes from."""
    path.write_text(json.dumps({"measured": measured, **asdict(efficiency)}, indent=2) + "\n", encoding="utf-8")


def read_efficiency(path: Path) -> Efficiency:
    """What `write_efficiency` wrote. Raises DataError."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        names = {field.name for field in fields(Efficiency)}
        return Efficiency(**{name: float(value) for name, value in values.items() if name in names})
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: no factors of efficiency in it ({error}); write it with plan --calibrate") from None
