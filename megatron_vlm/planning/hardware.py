"""What a GPU and the machine around it can do at best, from the makers' data sheets.

Peaks are dense (no structured sparsity), bandwidths are one way, sizes are decimal, as the sheets have them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from megatron_vlm.errors import ConfigError

#: what matrices are multiplied in
Precision = str


@dataclass(frozen=True)
class Hardware:
    """One kind of GPU in one kind of node.

    Attributes:
        peak: precision -> operations a second of a dense matrix product.
        memory: bytes of one GPU.
        memory_bandwidth: bytes a second.
        node_bandwidth: bytes a second that a GPU sends to the others of its node.
        network_bandwidth: bytes a second that a GPU sends to another node.
        gpus_per_node: GPUs that share the fast links.
        usable_memory: share of the memory that the program gets; CUDA, NCCL's buffers and the allocator have the rest.
    """

    name: str
    peak: Mapping[Precision, float]
    memory: float
    memory_bandwidth: float
    node_bandwidth: float
    network_bandwidth: float
    gpus_per_node: int = 8
    usable_memory: float = field(default=0.92)

    def peak_of(self, precision: Precision) -> float:
        """Raises ConfigError for a precision that this GPU does not multiply in."""
        if precision not in self.peak:
            raise ConfigError(
                f"--precision {precision}: {self.name} multiplies in {', '.join(self.peak)}; nearest that runs: bf16"
            )
        return self.peak[precision]


HARDWARE: dict[str, Hardware] = {
    # NVIDIA A100 80GB SXM data sheet (June 2021): 312 TFLOPS BF16, 19.5 FP32, 80 GB, 2,039 GB/s, NVLink 600 GB/s both ways.
    # DGX A100 data sheet: eight single-port 200 Gb/s HDR InfiniBand, one a GPU.
    "a100": Hardware("a100", {"bf16": 312e12, "fp32": 19.5e12}, 80e9, 2.039e12, 300e9, 25e9),
    # NVIDIA H100 SXM data sheet: 1,979 TFLOPS BF16 and 3,958 FP8 with sparsity, 67 FP32, 80 GB, 3.35 TB/s, NVLink 900 GB/s
    # both ways. DGX H100 data sheet: eight ConnectX-7 at 400 Gb/s, one a GPU.
    "h100": Hardware("h100", {"bf16": 989.5e12, "fp8": 1979e12, "fp32": 67e12}, 80e9, 3.35e12, 450e9, 50e9),
    # NVIDIA H200 SXM data sheet: as the H100, with 141 GB at 4.8 TB/s.
    "h200": Hardware("h200", {"bf16": 989.5e12, "fp8": 1979e12, "fp32": 67e12}, 141e9, 4.8e12, 450e9, 50e9),
    # NVIDIA DGX B200 data sheet: 72 PFLOPS FP8 with sparsity, 1,440 GB at 64 TB/s, NVLink 14.4 TB/s both ways, for eight;
    # eight 400 Gb/s ports. BF16 is half of FP8; FP32 from the Blackwell architecture brief (80 TFLOPS).
    "b200": Hardware("b200", {"bf16": 2250e12, "fp8": 4500e12, "fp32": 80e12}, 180e9, 8e12, 900e9, 50e9),
}


def hardware(name: str) -> Hardware:
    """By name, in any case. Raises ConfigError for one that is not described."""
    if name.lower() not in HARDWARE:
        raise ConfigError(f"--gpu {name}: described are {', '.join(HARDWARE)}; take the nearest and calibrate it on a run")
    return HARDWARE[name.lower()]
