"""The vision encoder: a ViT of megatron-core layers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.spec_utils import build_module
from megatron.core.transformer.transformer_block import TransformerBlock
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_vlm.config.model import VisionConfig
from megatron_vlm.models.language import packed_row
from megatron_vlm.models.position_table import PositionTable
from megatron_vlm.models.specs import vision_block_spec, vision_norm
from megatron_vlm.ops.patchify import patchify, patchify_squares, picture_table


class VisionEncoder(MegatronModule):
    """Pictures -> one feature row a patch.

    Patches go through the layers in blocks of `group` x `group` (see `ops.patchify`), each with the position of its place:
    attention does not mind the order, and the projector's pixel-shuffle is then a view.

    Pictures of another size than the encoder's own have another grid of patches: its positions are interpolated to them
    (`PositionTable`), all other weights serve any grid.

    The patch embedding is a matrix product over flattened patches, which is the families' strided convolution; its weight,
    the positions and the class and register tokens are replicated over tensor-parallel ranks, the layers are split, or
    whole where `groups` are of one rank.
    """

    def __init__(
        self,
        vision: VisionConfig,
        config: TransformerConfig,
        layer_spec: str,
        group: int = 1,
        native: bool = False,
        second: VisionEncoder | None = None,
        groups: ProcessGroupCollection | None = None,
    ) -> None:
        super().__init__(config=config)
        #: its features of a patch stand beside this one's; a part of this module, so that both are trained and frozen alike
        self.second = second
        self.vision, self.group = vision, group
        hidden, dtype = vision.hidden_size, config.params_dtype
        self.patch_embedding = torch.nn.Linear(3 * vision.patch_size**2, hidden, bias=vision.kind != "clip", dtype=dtype)
        has_class = vision.kind != "siglip"
        # DINOv2 is told in its family's code to smooth where it makes fewer positions, if it has registers and only then
        self.position_embeddings = PositionTable(vision.grid, hidden, has_class, vision.register_tokens > 0, dtype)
        self.class_token = torch.nn.Parameter(torch.zeros(hidden, dtype=dtype)) if has_class else None
        self.register_tokens = (
            torch.nn.Parameter(torch.zeros(vision.register_tokens, hidden, dtype=dtype)) if vision.register_tokens else None
        )
        self.pre_norm = (
            build_module(vision_norm(layer_spec), config=config, hidden_size=hidden, eps=vision.norm_epsilon)
            if vision.kind == "clip"
            else None
        )
        self.decoder = TransformerBlock(
            config=config,
            spec=vision_block_spec(vision, config, layer_spec, native),
            pre_process=True,
            post_process=True,
            post_layer_norm=vision.final_norm,
            pg_collection=groups,
        )

    def grid_of(self, pixels: Tensor) -> int:
        """Patches along one side of these pictures.

        Raises:
            ValueError: they are not square, smaller than a patch, or not of whole blocks of `group` x `group` patches.
        """
        _, height, width, _ = pixels.shape
        grid = height // self.vision.patch_size
        if height != width:
            raise ValueError(f"pictures are {height} x {width} pixels, and the encoder takes squares")
        if grid < 1 or grid % self.group:
            raise ValueError(
                f"pictures of {height} pixels a side have {grid} x {grid} patches of {self.vision.patch_size} pixels, which "
                f"is not a multiple of pixel_shuffle {self.group}"
            )
        return grid

    def forward(self, pixels: Tensor, sizes: Sequence[tuple[int, int]] | None = None) -> Tensor:
        """
        Args:
            pixels: uint8 `[pictures, size, size, 3]`; with `sizes`, `[bytes]`, pictures one after another.
            sizes: (height, width) in pixels of each picture, whole blocks of patches; None: all are alike.

        Returns:
            features `[pictures, patches, hidden_size]` in the parameters' dtype, patches in blocks of `group` x `group`: in
            reading order for a group of 1. With `sizes` `[1, patches, hidden_size]`, those of all pictures. A second
            encoder's stand beside them.

        Raises:
            ValueError: as `grid_of`.
        """
        features = self._squares(pixels) if sizes is None else self._packed(pixels, sizes)
        if self.second is not None:
            features = torch.cat([features, self.second(pixels, sizes)], dim=-1)
        return features

    def _squares(self, pixels: Tensor) -> Tensor:
        """Pictures that are all alike: `[pictures, patches, hidden_size]`."""
        vision, grid = self.vision, self.grid_of(pixels)
        patches, places = patchify_squares(
            pixels, vision.patch_size, vision.pixel_mean, vision.pixel_std, self.config.params_dtype, self.group
        )
        x = self.patch_embedding(patches)
        class_position, positions = self.position_embeddings(grid, None if self.group == 1 else places)
        x = x + positions
        if self.class_token is not None:
            parts = [(self.class_token + class_position).expand(x.size(0), 1, -1)]
            if self.register_tokens is not None:
                parts.append(self.register_tokens.unsqueeze(0).expand(x.size(0), -1, -1))
            x = torch.cat([*parts, x], dim=1)
        if self.pre_norm is not None:
            x = self.pre_norm(x)
        x = self.decoder(hidden_states=x.transpose(0, 1).contiguous(), attention_mask=None)  # [s, pictures, h]
        return x[vision.prefix_tokens :].transpose(0, 1)

    def _packed(self, pixels: Tensor, sizes: Sequence[tuple[int, int]]) -> Tensor:
        """Pictures of shapes of their own, in one row: each attends to itself alone."""
        vision = self.vision
        grids = [(height // vision.patch_size, width // vision.patch_size) for height, width in sizes]
        counts = [rows * columns for rows, columns in grids]
        patches, places = patchify(
            pixels,
            picture_table(sizes, vision.patch_size).to(pixels.device, non_blocking=True),
            sum(counts),
            patch_size=vision.patch_size,
            mean=vision.pixel_mean,
            std=vision.pixel_std,
            dtype=self.config.params_dtype,
            group=self.group,
        )
        x = self.patch_embedding(patches)
        class_position, positions = self.position_embeddings(grids, places)
        x = x + positions
        prefix = vision.prefix_tokens
        ends = torch.tensor([0, *counts]).cumsum(0)  # of the patches of each picture
        bounds = ends + prefix * torch.arange(len(ends))  # with what stands before them
        own: Tensor | None = None
        if prefix:
            assert self.class_token is not None
            before = [(self.class_token + class_position).unsqueeze(0)]
            if self.register_tokens is not None:
                before.append(self.register_tokens)
            own = (torch.arange(len(x)) + prefix * (1 + torch.repeat_interleave(torch.tensor(counts)).long())).to(x.device)
            first = (bounds[:-1].unsqueeze(1) + torch.arange(prefix)).reshape(-1).to(x.device)
            whole = x.new_empty(len(x) + prefix * len(counts), x.size(1))
            whole = whole.index_copy(0, first, torch.cat(before).to(x.dtype).repeat(len(counts), 1))
            x = whole.index_copy(0, own, x)
        if self.pre_norm is not None:
            x = self.pre_norm(x)
        row = packed_row(bounds.to(torch.int32).to(x.device), max(counts) + prefix)
        x = self.decoder(hidden_states=x.unsqueeze(1), attention_mask=None, packed_seq_params=row).squeeze(1)
        x = x if own is None else x.index_select(0, own)
        return x.unsqueeze(0)
