"""The vision encoder: a ViT of megatron-core layers, tensor-parallel, on the first pipeline stage."""

from __future__ import annotations

import torch
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.spec_utils import build_module
from megatron.core.transformer.transformer_block import TransformerBlock
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_vlm.config.model import VisionConfig
from megatron_vlm.models.specs import vision_block_spec, vision_norm
from megatron_vlm.ops.patchify import patchify_squares


class VisionEncoder(MegatronModule):
    """Pictures -> one feature row a patch.

    Patches go through the layers in blocks of `group` x `group` (see `ops.patchify`), each with the position of its place:
    attention does not mind the order, and the projector's pixel-shuffle is then a view.

    The patch embedding is a matrix product over flattened patches, which is the families' strided convolution; its weight,
    the positions and the class and register tokens are replicated over tensor-parallel ranks, the layers are split.
    """

    def __init__(self, vision: VisionConfig, config: TransformerConfig, layer_spec: str, group: int = 1) -> None:
        super().__init__(config=config)
        self.vision, self.group = vision, group
        hidden, dtype = vision.hidden_size, config.params_dtype
        self.patch_embedding = torch.nn.Linear(3 * vision.patch_size**2, hidden, bias=vision.kind != "clip", dtype=dtype)
        has_class = vision.kind != "siglip"
        self.position_embeddings = torch.nn.Embedding(vision.patches + has_class, hidden, dtype=dtype)
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
            spec=vision_block_spec(vision, config, layer_spec),
            pre_process=True,
            post_process=True,
            post_layer_norm=vision.final_norm,
        )

    def forward(self, pixels: Tensor) -> Tensor:
        """
        Args:
            pixels: uint8 `[pictures, height, width, 3]`. Where that is not the encoder's own image_size, its learnt
                positions are interpolated (bicubic, as the families' `interpolate_pos_encoding` in transformers).

        Returns:
            features `[pictures, patches, hidden_size]` in the parameters' dtype, patches in blocks of `group` x `group`: in
            reading order for a group of 1.

        Raises:
            ValueError: the grid of patches is no multiple of `group`.
        """
        vision = self.vision
        patches, places = patchify_squares(
            pixels, vision.patch_size, vision.pixel_mean, vision.pixel_std, self.config.params_dtype, self.group
        )
        x = self.patch_embedding(patches)
        positions = self.position_embeddings.weight
        has_class = self.class_token is not None
        rows, columns = (side // vision.patch_size for side in pixels.shape[1:3])
        if (rows, columns) != (vision.grid, vision.grid):
            x = x + self._interpolated(rows, columns)[places[:, 0] * columns + places[:, 1]]
        elif self.group == 1:
            x = x + positions[int(has_class) :]
        else:
            x = x + self.position_embeddings(places[:, 0] * vision.grid + places[:, 1] + int(has_class))
        if self.class_token is not None:
            first = (self.class_token + positions[0]).expand(x.size(0), 1, -1)
            parts = [first]
            if self.register_tokens is not None:
                parts.append(self.register_tokens.unsqueeze(0).expand(x.size(0), -1, -1))
            x = torch.cat([*parts, x], dim=1)
        if self.pre_norm is not None:
            x = self.pre_norm(x)
        x = self.decoder(hidden_states=x.transpose(0, 1).contiguous(), attention_mask=None)  # [s, pictures, h]
        return x[self.vision.prefix_tokens :].transpose(0, 1)

    def _interpolated(self, rows: int, columns: int) -> Tensor:
        """The learnt positions of patches on another grid, `[rows * columns, hidden]` in reading order."""
        grid, weight = self.vision.grid, self.position_embeddings.weight
        table = weight[weight.size(0) - grid * grid :].view(1, grid, grid, -1).permute(0, 3, 1, 2)
        other = torch.nn.functional.interpolate(
            table.float(),
            size=(rows, columns),
            mode="bicubic",
            align_corners=False,
            antialias=self.vision.register_tokens > 0,  # as DINOv2 with registers was trained, and no other
        )
        return other.permute(0, 2, 3, 1).reshape(rows * columns, -1).to(weight.dtype)
