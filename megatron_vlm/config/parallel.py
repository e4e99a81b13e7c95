"""The layout: how ranks share the model and the data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

#: see ParallelConfig.vision
VisionPlacement = Literal["tensor", "data_first_stage", "data_all_stages"]
VISION_PLACEMENTS: tuple[VisionPlacement, ...] = get_args(VisionPlacement)


@dataclass(frozen=True)
class ParallelConfig:
    """Data-parallel size is what is left: world size / `model_ranks`."""

    tensor_model_parallel_size: int = 1
    pipeline_model_parallel_size: int = 1
    #: language layers of the first stage, which has the vision encoder besides; None: as many as the others
    num_layers_in_first_pipeline_stage: int | None = None
    #: language layers of the last stage, which has the output layer besides; None: as many as the others
    num_layers_in_last_pipeline_stage: int | None = None
    #: model chunks a pipeline stage (interleaved schedule); 1: plain 1F1B
    virtual_pipeline_model_parallel_size: int = 1
    #: split norms and residuals along the sequence between tensor-parallel ranks
    sequence_parallel: bool = False
    #: ranks that share each micro-batch's positions, for rows too long for one: each computes two pieces of the row and, in
    #: attention, gathers the others' keys and values
    context_parallel_size: int = 1
    #: where pictures are encoded. tensor: on the first pipeline stage, layers split as the language's are. data_first_stage:
    #: each tensor-parallel rank of the first stage has the whole encoder and projector and a share of each micro-batch's
    #: pictures. data_all_stages: each rank of all stages has them, and a share of a step's pictures before its first
    #: micro-batch; rows go to the first stage and gradients come back after the last
    vision: VisionPlacement = "tensor"
    use_distributed_optimizer: bool = True
    overlap_grad_reduce: bool = False
    overlap_param_gather: bool = False
    recompute: Literal["none", "selective", "full"] = "none"
    #: auto: cuda where there is one, else the host platform (gloo ranks on CPU)
    device: Literal["auto", "cuda", "cpu"] = "auto"
    #: fp32 is the default of the host; bf16 of a GPU
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    #: layers: megatron-core with Transformer Engine kernels, or with PyTorch's own; auto: transformer_engine on CUDA
    layer_spec: Literal["auto", "host", "transformer_engine"] = "auto"
    #: seconds after which a collective that one rank does not join ends the run; while ranks are watched
    #: (`faults.timeout_s`), `faults.long_timeout_s` if that is more
    timeout_s: int = 600

    @property
    def model_ranks(self) -> int:
        """Ranks that a micro-batch is computed by: tensor * context * pipeline."""
        return self.tensor_model_parallel_size * self.context_parallel_size * self.pipeline_model_parallel_size

    @property
    def position_ranks(self) -> int:
        """Ranks over which the positions of a micro-batch are split outside of attention."""
        return self.context_parallel_size * (self.tensor_model_parallel_size if self.sequence_parallel else 1)

    @property
    def row_multiple(self) -> int:
        """What the positions of a micro-batch must be a multiple of, so that its ranks have alike many."""
        pieces = 2 * self.context_parallel_size if self.context_parallel_size > 1 else 1
        return math.lcm(pieces, self.position_ranks)
