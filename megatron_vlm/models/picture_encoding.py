"""Pictures into the rows that stand in the decoder's input: encoder, projector, and the ranks that share the pictures."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.transformer.module import MegatronModule
from torch import Tensor

from megatron_vlm.config.parallel import VisionPlacement
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

    def encode_images(
        self,
        pixels: Tensor,
        image_tokens: int | None = None,
        alone: bool = False,
        context: dist.ProcessGroup | None = None,
    ) -> Tensor:
        """uint8 `[pictures, size, size, 3]` -> rows `[pictures * image_tokens, hidden]`.

        Args:
            image_tokens: how many rows a picture is to take, None: as many as the projector gives. Where it gives more,
                squares of neighbouring ones are averaged.
            alone: the rank encodes all of them, also where `parallel.vision` is data_first_stage.
            context: a group of ranks that call this with the same pictures: they share them, and all get all rows.

        Raises:
            ValueError: pictures that the encoder cannot take (`VisionEncoder.grid_of`), or rows that do not average to so
                many (`image_pool.pool_for`).
        """
        assert self.vision is not None
        side = self.vision.grid_of(pixels) // self.vision.group
        return self._square_rows(
            lambda first, end: self._features(pixels[first:end], None), len(pixels), side, image_tokens, alone, context
        )

    def _square_rows(
        self,
        features: Callable[[int, int], Tensor],
        pictures: int,
        side: int,
        image_tokens: int | None,
        alone: bool,
        context: dist.ProcessGroup | None,
    ) -> Tensor:
        """Of pictures that have `side` x `side` rows after the projector; `features(first, end)` are those of some."""
        pool = 1 if image_tokens is None else pool_for(side, image_tokens)

        def encode(first: int, end: int) -> Tensor:
            assert self.projector is not None
            return pool_rows(self.projector(features(first, end)), side, pool)

        return self._shared_out(encode, [1] * pictures, [(side // pool) ** 2] * pictures, alone, context)

    def encode_shapes(
        self,
        pixels: Tensor,
        sizes: Sequence[tuple[int, int]],
        rows: int | None = None,
        alone: bool = False,
        context: dist.ProcessGroup | None = None,
    ) -> Tensor:
        """Pictures that keep their aspect: uint8 `[bytes]`, one after another -> `[rows, hidden]`.

        Args:
            sizes: (height, width) in pixels of each picture, on whole rows.
            rows: of all pictures together, None: as many as the projector gives. Where it gives more, squares of
                neighbouring ones are averaged.
            alone, context: as of `encode_images`.

        Raises:
            ValueError: rows that no averaging gives.
        """
        ends = [0, *itertools.accumulate(3 * height * width for height, width in sizes)]
        return self._shaped_rows(
            lambda first, end: self._features(pixels[ends[first] : ends[end]], sizes[first:end]), sizes, rows, alone, context
        )

    def _shaped_rows(
        self,
        features: Callable[[int, int], Tensor],
        sizes: Sequence[tuple[int, int]],
        rows: int | None,
        alone: bool,
        context: dist.ProcessGroup | None,
    ) -> Tensor:
        """Of pictures of these (height, width) in pixels; `features(first, end)` are those of some."""
        assert self.vision is not None
        side = self.vision.vision.patch_size * self.vision.group
        sides = [(height // side, width // side) for height, width in sizes]
        given = sum(down * across for down, across in sides)
        pool = 1 if rows is None else math.isqrt(given // max(1, rows))
        if rows is not None and pool * pool * rows != given:
            raise ValueError(f"the projector gives {given} rows, whose squares average to no {rows}")
        costs = [down * across for down, across in sides]

        def encode(first: int, end: int) -> Tensor:
            assert self.projector is not None
            return pool_shaped(self.projector(features(first, end)), sides[first:end], pool)

        return self._shared_out(encode, costs, [cost // pool**2 for cost in costs], alone, context)

    def project_features(
        self,
        features: Tensor,
        pictures: int,
        sizes: Sequence[tuple[int, int]] | None = None,
        alone: bool = False,
        context: dist.ProcessGroup | None = None,
    ) -> Tensor:
        """Features that a frozen encoder gave before: bf16 `[rows, numbers of a row]` -> rows `[rows, hidden]`.

        Args:
            features: of all pictures, one after another, each picture's patches as the encoder orders them.
            sizes: as of `encode_shapes`; None: all pictures are squares of as many patches.
            alone, context: as of `encode_images`.

        Raises:
            ValueError: features that are no whole patches, or rows that no averaging gives.
        """
        assert self.vision is not None
        group, count = self.vision.group, len(features)
        patches = features.reshape(-1, self._vision_width).to(self.config.params_dtype)
        if sizes is None:
            each = len(patches) // pictures
            side = math.isqrt(each) // group

            def some(first: int, end: int) -> Tensor:
                return patches[first * each : end * each].unsqueeze(0)

            return self._square_rows(some, pictures, side, count // pictures, alone, context)
        area = self.vision.vision.patch_size**2
        ends = [0, *itertools.accumulate(height * width // area for height, width in sizes)]
        return self._shaped_rows(
            lambda first, end: patches[ends[first] : ends[end]].unsqueeze(0), sizes, count, alone, context
        )

    def _shared_out(
        self,
        encode: Callable[[int, int], Tensor],
        costs: Sequence[int],
        rows: Sequence[int],
        alone: bool,
        context: dist.ProcessGroup | None,
    ) -> Tensor:
        """`encode(first, end)` of all pictures, or of this rank's share, and what the others made of theirs."""
        if context is None or context.size() == 1:
            return self._shared_on_first_stage(encode, costs, rows, alone)
        shares = picture_shares(costs, context.size())
        first, end = shares[context.rank()]

        def own(a: int, b: int) -> Tensor:
            return encode(first + a, first + b)

        part = (
            self._no_rows() if first == end else self._shared_on_first_stage(own, costs[first:end], rows[first:end], alone)
        )
        return summed_rows(part, [sum(rows[a:b]) for a, b in shares], context)

    def _shared_on_first_stage(
        self, encode: Callable[[int, int], Tensor], costs: Sequence[int], rows: Sequence[int], alone: bool
    ) -> Tensor:
        group = parallel_state.get_tensor_model_parallel_group()
        if alone or self._placement != "data_first_stage" or group.size() == 1:
            return encode(0, len(costs))
        shares = picture_shares(costs, group.size())
        first, end = shares[group.rank()]
        own = self._no_rows() if first == end else encode(first, end)
        return gathered_rows(own, [sum(rows[a:b]) for a, b in shares], group)

    def _no_rows(self) -> Tensor:
        """Of a rank that encoded nothing. They ask for a gradient where rows of others do: layers above go back to them, and
        exchange gradients, on all ranks or on none."""
        assert self.projector is not None
        rows = next(self.projector.parameters()).new_empty(0, self._row_width)
        return rows.requires_grad_(torch.is_grad_enabled() and bool(self.picture_parameters()))

    def _features(self, pixels: Tensor, sizes: Sequence[tuple[int, int]] | None) -> Tensor:
        assert self.vision is not None
        features: Tensor
        if any(p.requires_grad for p in self.vision.parameters()):
            features = self.vision(pixels, sizes)
        else:
            with torch.no_grad():  # a frozen encoder keeps no graph
                features = self.vision(pixels, sizes)
        return features

    def picture_parameters(self) -> list[torch.nn.Parameter]:
        """Those of encoder and projector that are trained; none where they are not."""
        modules = [module for module in (self.vision, self.projector) if module is not None]
        return [p for module in modules for p in module.parameters() if p.requires_grad]
