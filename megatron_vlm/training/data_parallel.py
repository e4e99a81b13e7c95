"""megatron-core's data parallelism, in one order on all ranks, whether or not a rank has pictures.

Overlapped, its hooks begin a reduction of gradients where a rank has the last gradient of a bucket, and a gather of
parameters where it first comes to one. Ranks whose micro-batches hold no picture come to encoder and projector at another
time, or never: collectives of different buckets would meet, or wait for each other without end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.transformer.transformer_config import TransformerConfig

__all__ = ["DataParallel", "DistributedDataParallelConfig"]


class DataParallel(DistributedDataParallel):
    """DistributedDataParallel whose gathers and reductions are begun in an order that no data decides.

    Args:
        last: parameters of `module` that a micro-batch may leave out. Buckets that have one of them are reduced after the
            last micro-batch, when `reduce_last` is called.
    """

    def __init__(
        self,
        config: TransformerConfig,
        ddp_config: DistributedDataParallelConfig,
        module: torch.nn.Module,
        last: Iterable[torch.nn.Parameter],
        **options: Any,
    ) -> None:
        known = list(last)
        object.__setattr__(self, "_last", known)  # what follows makes the hooks, and asks it
        object.__setattr__(self, "_last_ids", {id(parameter) for parameter in known})
        super().__init__(config=config, ddp_config=ddp_config, module=module, **options)

    def _make_backward_post_hook(self, param: torch.nn.Parameter) -> Callable[..., None]:
        hook: Callable[..., None] = super()._make_backward_post_hook(param)
        if id(param) not in self._last_ids:
            return hook

        def add_alone(*unused: Any) -> None:
            """What the hook adds to the gradient, without telling the bucket that it is there."""
            group = self.param_to_bucket_group[param]
            before, group.is_last_microbatch = group.is_last_microbatch, False
            try:
                hook(*unused)
            finally:
                group.is_last_microbatch = before

        return add_alone

    def reduce_last(self) -> None:
        """After a step's last backward pass: their gradients are all there, those that nothing gave are zero."""
        if self.ddp_config.overlap_grad_reduce:
            for parameter in self._last:
                self.param_to_bucket_group[parameter].register_grad_ready(parameter, self.force_all_reduce)

    def begin_gathers(self) -> None:
        """Before a step's first forward pass: begin to gather what the last update changed, in the order of that pass. Hooks
        wait for each bucket where it is needed."""
        if self.ddp_config.overlap_param_gather:
            for group in reversed(self.bucket_groups):  # laid in the order of backward passes
                if not group.param_gather_dispatched:
                    group.start_param_sync()

    def finish_gathers(self) -> None:
        """Wait for buckets that this rank's step did not need, so that all ranks are at one point again."""
        if self.ddp_config.overlap_param_gather:
            for group in self.bucket_groups:
                if group.param_gather_handle is not None:
                    group.finish_param_sync(skip_next_bucket_dispatch=True)
