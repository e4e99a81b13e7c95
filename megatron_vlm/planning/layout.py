"""How a model and a batch lie on a number of GPUs: the layout of a configuration, with what follows from it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from megatron_vlm.config.parallel import VISION_PLACEMENTS, VisionPlacement
from megatron_vlm.config.run import RunConfig
from megatron_vlm.config.steps import StepShape

__all__ = ["VISION_PLACEMENTS", "Layout", "Recompute", "VisionPlacement", "layout_of", "with_vision"]

Recompute = Literal["none", "selective", "full"]


@dataclass(frozen=True)
class Layout:
    """Sizes of the groups, and what changes memory or time.

    Ranks are ordered tensor, context, data, pipeline, as megatron-core's are: tensor-parallel neighbours share a node,
    pipeline stages are the furthest apart.
    """

    gpus: int
    tensor: int = 1
    pipeline: int = 1
    virtual: int = 1
    sequence_parallel: bool = False
    recompute: Recompute = "none"
    vision: VisionPlacement = "tensor"
    distributed_optimizer: bool = True
    overlap_grad_reduce: bool = False
    overlap_param_gather: bool = False
    #: tensor-parallel exchanges are cut into pieces that hide behind their matrix products (user buffers)
    overlap_tensor: bool = False
    first_layers: int | None = None
    last_layers: int | None = None
    #: fp32, bf16 or fp8 (matrices of the language layers in fp8, everything else as bf16)
    precision: str = "bf16"
    #: language layers at the model's start and end that stay in bf16 beside fp8
    first_in_bf16: int = 0
    last_in_bf16: int = 0
    #: what `performance` says beside `recompute`, under the same names
    recompute_modules: tuple[str, ...] = ("core_attn",)
    recompute_method: Literal["uniform", "block"] = "uniform"
    recompute_layers: int = 1
    recompute_vision: bool = False
    offload_layers: int = 0
    #: ranks that share the positions of each micro-batch, and its pictures
    context: int = 1

    @property
    def data(self) -> int:
        return self.gpus // (self.tensor * self.context * self.pipeline)

    @property
    def replicas(self) -> int:
        """Ranks that have the same part of the model: gradients are summed and optimiser state is shared over them."""
        return self.data * self.context

    def positions(self, shape: StepShape) -> int:
        """Of a micro-batch, those of one context-parallel rank."""
        return shape.micro_batch_size * shape.sequence_length // self.context

    def kept_keys(self, shape: StepShape) -> float:
        """Positions whose keys and values attention keeps, for each of the rank's own, on the context-parallel rank that
        keeps most.

        A rank has two pieces of a row and, of the document that a piece begins in, what came before it
        (`models.context_row`): at most what lies before it in its pack, and together no more than of one document that fills
        the row.
        """
        if self.context == 1:
            return 1.0
        pieces, size = 2 * self.context, self.positions(shape) // 2
        before = sorted(number * size % shape.sequence_length for number in range(pieces))
        return min(pieces + 1, 2 + (before[-1] + before[-2]) / size) / 2

    @property
    def encoder_split(self) -> int:
        """Over how many ranks an encoder's matrices are split."""
        return self.tensor if self.vision == "tensor" else 1

    def layers(self, count: int) -> list[list[int]]:
        """Language layers of each stage's chunks: `[stage][chunk]`."""
        if self.first_layers is None and self.last_layers is None:
            return [[count // (self.pipeline * self.virtual)] * self.virtual for _ in range(self.pipeline)]
        ends = [n for n in (self.first_layers, self.last_layers) if n is not None]
        others = (count - sum(ends)) // max(1, self.pipeline - len(ends))
        stages = [others] * self.pipeline
        if self.first_layers is not None:
            stages[0] = self.first_layers
        if self.last_layers is not None:
            stages[-1] = self.last_layers
        return [[n] for n in stages]

    @property
    def encoding_ranks(self) -> int:
        """Ranks that share the pictures of a micro-batch, or of a step, but for context-parallel ones."""
        return {"tensor": 1, "data_first_stage": self.tensor, "data_all_stages": self.tensor * self.pipeline}[self.vision]

    def context_in_node(self, gpus_per_node: int) -> int:
        """Members of a context-parallel group that share a node."""
        return max(1, min(self.context, gpus_per_node // self.tensor))

    def replicas_in_node(self, gpus_per_node: int) -> int:
        """Those of `replicas` that share a node."""
        return max(1, min(self.replicas, gpus_per_node // self.tensor))

    def __str__(self) -> str:
        words = [f"tp {self.tensor}", f"pp {self.pipeline}", f"dp {self.data}"]
        if self.virtual > 1:
            words.insert(2, f"vp {self.virtual}")
        if self.context > 1:
            words.insert(1, f"cp {self.context}")
        if self.recompute != "none":
            words.append(f"recompute {self._recomputed()}")
        if self.recompute_vision:
            words.append("recompute vision")
        if self.offload_layers:
            words.append(f"offload {self.offload_layers} layers")
        if self.vision != "tensor":
            words.append(f"vision {self.vision}")
        return ", ".join(words)

    def _recomputed(self) -> str:
        if self.recompute == "selective" and self.recompute_modules != ("core_attn",):
            return " + ".join(self.recompute_modules)
        if self.recompute == "full" and (self.recompute_method, self.recompute_layers) != ("uniform", 1):
            return f"full ({self.recompute_method} {self.recompute_layers})"
        return self.recompute


def with_vision(config: RunConfig, vision: VisionPlacement) -> RunConfig:
    """The configuration with that placement."""
    return replace(config, parallel=replace(config.parallel, vision=vision))


def layout_of(config: RunConfig, gpus: int, precision: str | None = None, vision: VisionPlacement | None = None) -> Layout:
    """The layout that a configuration has on `gpus` GPUs. `precision` and `vision` stand in for the configuration's.

    On a GPU `auto` is bf16; fp8 is what `precision.fp8` asks for, whatever its recipe.
    """
    parallel, performance = config.parallel, config.performance
    half = "bf16" if parallel.precision == "auto" else parallel.precision
    chosen = precision or (half if config.precision.fp8 == "none" else "fp8")
    return Layout(
        gpus,
        parallel.tensor_model_parallel_size,
        parallel.pipeline_model_parallel_size,
        parallel.virtual_pipeline_model_parallel_size,
        parallel.sequence_parallel,
        parallel.recompute,
        vision or parallel.vision,
        parallel.use_distributed_optimizer,
        parallel.overlap_grad_reduce,
        parallel.overlap_param_gather,
        performance.tp_overlap,
        parallel.num_layers_in_first_pipeline_stage,
        parallel.num_layers_in_last_pipeline_stage,
        chosen,
        config.precision.first_layers_in_bf16,
        config.precision.last_layers_in_bf16,
        performance.recompute_modules,
        performance.recompute_method,
        performance.recompute_layers,
        performance.recompute_vision,
        performance.cpu_offload_layers,
        parallel.context_parallel_size,
    )
