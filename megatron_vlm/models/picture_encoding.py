"""Pictures into the rows that stand in the decoder's input: encoder, projector, and the ranks that share the pictures."""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.transformer.module import MegatronModule
from torch import Tensor

from megatron_vlm.config.parallel import VisionPlacement
from megatron_vlm.data.picture_input import PictureInput
from megatron_vlm.models.image_pool import pool_for, pool_rows, pool_shaped
from megatron_vlm.models.projector import Projector
from megatron_vlm.models.vision import VisionEncoder
from megatron_vlm.parallel.picture_shares import gathered_rows, picture_shares, summed_rows


class PictureEncoding(MegatronModule):
    """What a model chunk with `vision` and `projector` does with them; a chunk that has none calls nothing of it.

    Two kinds of ranks may share pictures, each kind within the other's share. Tensor-parallel ranks of the first stage
    (`parallel.vision: data_first_stage`) go on with the same rows and get the same gradient of them. Context-parallel ranks,
    where a call names their `context` group, go on with rows of which each puts some into its part of the sequence: their
    gradients are summed.
    """

    vision: VisionEncoder | None
    projector: Projector | None
    _placement: VisionPlacement
    _vision_width: int
    _row_width: int

    def encode_pictures(self, shown: PictureInput, context: dist.ProcessGroup | None = None) -> Tensor:
        """Rows `[shown.rows, hidden]` of pictures that all ranks which may share them call this with; all get all rows.

        Args:
            context: a group of ranks with parts of one sequence; None: each puts all rows into its own.

        Raises:
            ValueError: pictures that the encoder cannot take (`VisionEncoder.grid_of`), or placeholders to which their rows
                do not average (`image_pool`).
        """
        self._pool(shown)  # refused on all ranks, before any waits for another
        if context is None or context.size() == 1:
            return self._on_first_stage(shown)
        shares = picture_shares(shown.costs, context.size())
        first, end = shares[context.rank()]
        own = self._no_rows() if first == end else self._on_first_stage(shown.part(first, end))
        return summed_rows(own, [shown.rows_of(*share) for share in shares], context)

    def encode_alone(self, shown: PictureInput) -> Tensor:
        """The same of pictures that no other rank encodes with this one.

        Raises:
            ValueError: as `encode_pictures`.
        """
        assert self.projector is not None
        pool, sides = self._pool(shown), self._sides(shown)
        rows = self.projector(self._features(shown))
        return pool_rows(rows, sides[0][0], pool) if shown.sizes is None else pool_shaped(rows, sides, pool)

    def _on_first_stage(self, shown: PictureInput) -> Tensor:
        group = parallel_state.get_tensor_model_parallel_group()
        if self._placement != "data_first_stage" or group.size() == 1:
            return self.encode_alone(shown)
        shares = picture_shares(shown.costs, group.size())
        first, end = shares[group.rank()]
        own = self._no_rows() if first == end else self.encode_alone(shown.part(first, end))
        return gathered_rows(own, [shown.rows_of(*share) for share in shares], group)

    def _no_rows(self) -> Tensor:
        """Of a rank that encoded nothing. They ask for a gradient where rows of others do: layers above go back to them, and
        exchange gradients, on all ranks or on none."""
        assert self.projector is not None
        rows = next(self.projector.parameters()).new_empty(0, self._row_width)
        return rows.requires_grad_(torch.is_grad_enabled() and bool(self.picture_parameters()))

    def _sides(self, shown: PictureInput) -> list[tuple[int, int]]:
        """(rows, columns) that the projector gives of each picture; of one where all are alike."""
        assert self.vision is not None
        group = self.vision.group
        if shown.sizes is not None:
            side = self.vision.vision.patch_size * group
            return [(height // side, width // side) for height, width in shown.sizes]
        if shown.features is not None:
            across = math.isqrt(shown.features.numel() // self._vision_width // shown.count)
        else:
            assert shown.pixels is not None
            across = self.vision.grid_of(shown.pixels)
        return [(across // group, across // group)]

    def _pool(self, shown: PictureInput) -> int:
        """Squares of so many rows a side of the projector become one placeholder."""
        sides = self._sides(shown)
        if shown.sizes is None:
            return pool_for(sides[0][0], shown.rows // shown.count)
        given = sum(down * across for down, across in sides)
        pool = math.isqrt(given // max(1, shown.rows))
        if pool * pool * shown.rows != given:
            raise ValueError(f"the projector gives {given} rows, whose squares average to no {shown.rows}")
        return pool

    def _features(self, shown: PictureInput) -> Tensor:
        """What the encoder gives of them, or gave before: `[pictures, patches, width]`, native ones in one row."""
        if shown.features is not None:
            patches = shown.features.reshape(1, -1, self._vision_width)
            return patches.to(self.config.params_dtype)
        assert self.vision is not None
        assert shown.pixels is not None
        learns = any(p.requires_grad for p in self.vision.parameters())
        with torch.set_grad_enabled(learns and torch.is_grad_enabled()):  # a frozen encoder keeps no graph
            features: Tensor = self.vision(shown.pixels, shown.sizes)
        return features

    def picture_parameters(self) -> list[torch.nn.Parameter]:
        """Those of encoder and projector that are trained; none where they are not."""
        modules = [module for module in (self.vision, self.projector) if module is not None]
        return [p for module in modules for p in module.parameters() if p.requires_grad]
