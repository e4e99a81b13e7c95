"""Operations and bytes of one layout on one kind of hardware as seconds, and sums of such seconds by what they go to."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_vlm.planning.communication import links
from megatron_vlm.planning.efficiency import Efficiency
from megatron_vlm.planning.hardware import Hardware
from megatron_vlm.planning.layout import Layout

#: kernels of a layer, forward and backward, for the gaps between them
LAYER_KERNELS = (16, 26)


@dataclass(frozen=True)
class Work:
    """Seconds of one pass by what they go to. `exchange` is between tensor-parallel ranks, `context` between
    context-parallel ones."""

    matrices: float = 0.0
    attention: float = 0.0
    streaming: float = 0.0
    exchange: float = 0.0
    context: float = 0.0
    head: float = 0.0
    encoder: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))

    def __mul__(self, times: float) -> Work:
        return Work(*(getattr(self, name) * times for name in self.__dataclass_fields__))

    @property
    def total(self) -> float:
        return sum(getattr(self, name) for name in self.__dataclass_fields__)


class Clock:
    """Turns operations and bytes of one layout on one kind of hardware into seconds."""

    def __init__(self, layout: Layout, hardware: Hardware, efficiency: Efficiency) -> None:
        self.layout, self.efficiency = layout, efficiency
        self.links = links(layout, hardware, efficiency)
        half = "fp32" if layout.precision == "fp32" else "bf16"
        self.peak = hardware.peak_of(half)
        eight = layout.precision == "fp8"
        # what runs in fp8 has another peak and its own share of it
        self.layer_rate = hardware.peak_of(layout.precision) * (efficiency.matrix_fp8 if eight else efficiency.matrix)
        self.half_rate = self.peak * efficiency.matrix
        self.bandwidth = hardware.memory_bandwidth * efficiency.memory

    def layer_matrices(self, flops: float, in_bf16: bool = False) -> float:
        """Of a language layer. `in_bf16`: of one that stays so where the layout is in FP8."""
        return flops / self.layout.tensor / (self.half_rate if in_bf16 else self.layer_rate)

    def matrices(self, flops: float, split: int) -> float:
        return flops / split / self.half_rate

    def attention(self, flops: float, split: int) -> float:
        return flops / split / (self.peak * self.efficiency.attention)

    def encoder(self, flops: float, split: int) -> float:
        return flops / split / (self.peak * self.efficiency.vision)

    def stream(self, bytes_: float) -> float:
        return bytes_ / self.bandwidth

    def context_exchange(self, bytes_: float) -> float:
        """Nothing hides it: a layer's attention waits for the keys and values that it gathers."""
        return bytes_ / self.links.context

    def tensor_exchange(self, bytes_: float) -> float:
        hidden = self.efficiency.tensor_overlap if self.layout.overlap_tensor else 0.0
        return bytes_ / self.links.tensor * (1 - hidden)
