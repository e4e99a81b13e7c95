"""CUDA graphs of the language layers' feed-forward blocks, whose shapes are one for all micro-batches of a step.

A layer's attention takes other documents in each micro-batch and stays outside. megatron-core captures and replays
(`TECudaGraphHelper`); here is when: after some steps of a shape, and anew where rows have another length, a pipeline another
number of micro-batches, or a stage trains other modules and lays parameters anew. Nobody has run it on a GPU yet.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.num_microbatches_calculator import destroy_num_microbatches_calculator, init_num_microbatches_calculator

from megatron_vlm.training.data_parallel import DataParallel

#: steps of a shape before it is captured, as many as megatron-core has by default
WARMUP_STEPS = 3


class LayerGraphs:
    """The graphs of one rank, if `wanted`.

    Attributes:
        captures: how many times graphs were captured.
    """

    def __init__(self, wanted: bool) -> None:
        self.wanted, self.captures = wanted, 0
        self._helper: Any = None
        self._shape: tuple[int, int] | None = None
        self._steps = 0

    @property
    def coming(self) -> bool:
        """Whether the next step captures, if it has the shape of the last: that takes longer than a step."""
        return self.wanted and self._helper is None and self._steps == WARMUP_STEPS

    def before_step(self, chunks: Sequence[DataParallel], optimizer: Any, positions: int, micro_batches: int) -> None:
        """Capture where a step of this shape is the first after the warm-up. Gradients are zero afterwards.

        Args:
            optimizer: megatron-core's.
            positions: of a micro-batch, on this context-parallel rank.
        """
        if not self.wanted:
            return
        # without a pipeline one graph a layer serves all micro-batches
        shape = (positions, micro_batches if parallel_state.get_pipeline_model_parallel_world_size() > 1 else 1)
        if shape != self._shape:
            self.forget()
            self._shape = shape
        if self.coming:
            self._capture(chunks, optimizer, positions, micro_batches)
        self._steps += 1

    def forget(self) -> None:
        """Before parameters are laid anew, or for another shape."""
        if self._helper is not None:
            self._helper.delete_cuda_graphs()
        self._helper, self._shape, self._steps = None, None, 0

    def _capture(self, chunks: Sequence[DataParallel], optimizer: Any, positions: int, micro_batches: int) -> None:
        from megatron.core.transformer.cuda_graphs import TECudaGraphHelper

        hooked = [chunk for chunk in chunks if chunk.use_forward_hook and chunk.remove_forward_pre_hook_handles]
        for chunk in hooked:
            chunk.disable_forward_pre_hook(param_sync=False)
        init_num_microbatches_calculator(dist.get_rank(), None, micro_batches, 1, 1)
        try:
            helper = TECudaGraphHelper(list(chunks), chunks[0].config, positions, 1, [optimizer])
            helper.create_cudagraphs()
        finally:
            destroy_num_microbatches_calculator()
            for chunk in hooked:
                chunk.enable_forward_pre_hook()
        if hooked:
            helper.cuda_graph_set_manual_hooks()
        self._helper = helper
        self.captures += 1
