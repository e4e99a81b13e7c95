"""From vision features to rows of the language model's input."""

from __future__ import annotations

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_vlm.config.model import ProjectorConfig


def pixel_shuffle(features: Tensor, factor: int) -> Tensor:
    """`[n, patches, h]` -> `[n, patches / factor^2, factor^2 * h]`: factor x factor neighbours side by side in one row.

    Patches come in blocks of factor x factor (`ops.patchify`), so it is a view of contiguous features.
    """
    n, patches, hidden = features.shape
    return features.reshape(n, patches // factor**2, factor**2 * hidden)


class Projector(MegatronModule):
    """`linear`; `mlp2`: two layers with GELU; `mlp3`: three, for features of two encoders side by side.

    The hidden layer is split over tensor-parallel ranks (column- then row-parallel); a middle layer of `mlp3` and the
    single matrix of `linear` gather their output. Sequence parallelism does not reach here: rows are whole on each rank.
    `groups` None: megatron-core's own; of one rank: nothing is split.
    """

    def __init__(
        self,
        projector: ProjectorConfig,
        config: TransformerConfig,
        input_size: int,
        output_size: int,
        groups: ProcessGroupCollection | None = None,
    ) -> None:
        super().__init__(config=config)
        self.kind = projector.kind
        self.factor = projector.pixel_shuffle
        width = projector.hidden_size or output_size
        size = input_size * self.factor**2
        shared = {"config": config, "init_method": config.init_method, "bias": True, "skip_bias_add": False}
        shared["tp_group"] = None if groups is None else groups.tp
        if self.kind == "linear":
            self.linear_fc1 = ColumnParallelLinear(size, output_size, gather_output=True, **shared)
            return
        self.linear_fc1 = ColumnParallelLinear(size, width, gather_output=self.kind == "mlp3", **shared)
        if self.kind == "mlp3":
            self.linear_middle = ColumnParallelLinear(width, width, gather_output=False, **shared)
        self.linear_fc2 = RowParallelLinear(width, output_size, input_is_parallel=True, **shared)

    def forward(self, features: Tensor) -> Tensor:
        """`[pictures, patches, vision hidden]`, patches in blocks of the shuffle's size -> rows
        `[pictures * patches / shuffle^2, language hidden]`, in reading order of the blocks."""
        x = pixel_shuffle(features, self.factor)
        x = x.reshape(-1, x.size(-1))
        x, _ = self.linear_fc1(x)
        if self.kind == "linear":
            return x
        x = torch.nn.functional.gelu(x)
        if self.kind == "mlp3":
            x, _ = self.linear_middle(x)
            x = torch.nn.functional.gelu(x)
        x, _ = self.linear_fc2(x)
        return x
