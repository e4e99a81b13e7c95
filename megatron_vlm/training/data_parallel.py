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


class DataParallel(DistributedDataParallel):
    """DistributedDataParallel whose gathers and reductions are begun in an order that no data decides.

    Args:
        late: parameters of `module` that a micro-batch may leave out. Buckets that have one of them are reduced after the
            last micro-batch, when `reduce_late` is called.
    """

    def __init__(
        self,
        config: TransformerConfig,
        ddp_config: DistributedDataParallelConfig,
        module: torch.nn.Module,
        late: Iterable[torch.nn.Parameter],
        **options: Any,
    ) -> None:
        known = list(late)
        object.__setattr__(self, "_late", known)  # what follows makes the hooks, and asks it
        object.__setattr__(self, "_late_ids", {id(parameter) for parameter in known})
        super().__init__(config=config, ddp_config=ddp_config, module=module, **options)
        self._order_gathers()

    def _make_backward_post_hook(self, param: torch.nn.Parameter) -> Callable[..., None]:
        hook: Callable[..., None] = super()._make_backward_post_hook(param)
        if id(param) not in self._late_ids:
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

    def reduce_late(self) -> None:
        """After a step's last backward pass: their gradients are all there, those that nothing gave are zero."""
        if self.ddp_config.overlap_grad_reduce:
            for parameter in self._late:
                self.param_to_bucket_group[parameter].register_grad_ready(parameter, self.force_all_reduce)

    def _order_gathers(self) -> None:
        """Buckets that have none of them are gathered one after another as hooks come to them; the others with the first."""
        self._first_gathers: list[Any] = []
        if not self.ddp_config.overlap_param_gather:
            return
        forward = list(reversed(self.bucket_groups))  # laid as backward passes come to them
        late = [group for group in forward if any(id(parameter) in self._late_ids for parameter in group.params)]
        always = [group for group in forward if group not in late]
        for group, following in zip(always, [*always[1:], None], strict=False):
            group.next_param_gather_bucket_group = following
        for group in late:
            group.next_param_gather_bucket_group = None
        self._first_gathers = [*late, *always[:1]]

    def begin_gathers(self) -> None:
        """Before a step's first forward pass: begin to gather what the last update changed of the parameters that a rank may
        not come to, and of those that it comes to first. Hooks wait for a bucket, and begin the next."""
        for group in self._first_gathers:
            if not group.param_gather_dispatched:
                group.start_param_sync()

    def finish_gathers(self) -> None:
        """Wait for buckets that this rank's step did not need, so that all ranks are at one point again."""
        for group in self._first_gathers:
            if group.param_gather_handle is not None:
                group.finish_param_sync(skip_next_bucket_dispatch=True)
