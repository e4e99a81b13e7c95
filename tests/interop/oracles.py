"""Tiny random models of the `transformers` library, and this project's logits of a converted checkpoint.

`transformers` is imported inside the functions, which run in processes of their own.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_vlm.config.data import TokenCounts
from megatron_vlm.config.loading import load_config
from megatron_vlm.config.parallel import ParallelConfig
from megatron_vlm.config.run import RunConfig
from megatron_vlm.data.picture_input import PictureInput
from megatron_vlm.models.language import packed_row
from megatron_vlm.parallel import topology
from megatron_vlm.training.checkpoint import checkpoint_config, load_model
from megatron_vlm.training.engine import Engine, unwrap

ROWS = 150
LENGTH = 24
TEXT: dict[str, Any] = {
    "vocab_size": ROWS,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
PICTURE: dict[str, Any] = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
}


def base_config() -> RunConfig:
    return load_config(preset="tiny", overrides=["--logging.tensorboard", "false"])


def small_tokenizer(folder: Path) -> Path:
    """A tokenizer of ROWS words: the last three are the end of a document, a picture and padding."""
    model = {"type": "WordLevel", "vocab": {f"w{n}": n for n in range(ROWS - 3)}, "unk_token": "w0"}
    (folder / "tokenizer.json").write_text(json.dumps({"version": "1.0", "added_tokens": [], "model": model}))
    return folder / "tokenizer.json"


def randomized(model: torch.nn.Module, seed: int = 11) -> Any:
    """Every parameter away from zero and one, so that none can be forgotten unseen."""
    generator = torch.Generator().manual_seed(seed)
    one_head = torch.empty(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".norms." in name and not name.endswith("norms.0.weight"):
                parameter.copy_(one_head)  # a norm a head, all alike
                continue
            gain = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            spread = 0.2 if parameter.dim() == 1 else 1.3 / parameter.shape[-1] ** 0.5
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * spread + gain)
            one_head = parameter.clone() if ".norms." in name else one_head
    return model.eval()


def word_ids() -> Tensor:
    return torch.randint(3, ROWS - 5, (1, LENGTH), generator=torch.Generator().manual_seed(5))


def pictures(count: int, size: int = 32) -> Tensor:
    generator = torch.Generator().manual_seed(4)
    return torch.randint(0, 256, (count, size, size, 3), generator=generator, dtype=torch.uint8)


def pixel_values(config: RunConfig, images: Tensor) -> Tensor:
    """As transformers' models take them: fp32 `[pictures, 3, size, size]`."""
    mean, std = (torch.tensor(v) for v in (config.model.vision.pixel_mean, config.model.vision.pixel_std))
    return ((images / 255.0 - mean) / std).permute(0, 3, 1, 2)


@torch.no_grad()
def our_logits(
    checkpoint: Path,
    tokens: Tensor,
    images: Tensor | None = None,
    image_token: int = -1,
    parallel: dict[str, Any] | None = None,
    words: int = ROWS,
) -> Tensor | None:
    """fp32 `[positions, vocabulary]` on ranks of the last stage, None on the others."""
    from megatron.core.pipeline_parallel.schedules import get_forward_backward_func

    config = replace(checkpoint_config(checkpoint), parallel=ParallelConfig(**(parallel or {})))
    top = topology.initialize(config.parallel, seed=1)
    engine = Engine(config, TokenCounts(words, 0, image_token, 2), top)
    load_model(engine, checkpoint)
    chunk = engine.chunks[0].eval()
    at = tokens == image_token
    row_index = torch.where(at, at.flatten().cumsum(0).view_as(tokens) - 1, -1).to(torch.int32)
    length = tokens.size(1)
    shown = None if images is None else PictureInput(len(images), int(at.sum()), images)

    def step(batches: Any, model: Any) -> tuple[Tensor, Callable[..., Any]]:
        out = model(
            tokens=next(batches),
            position_ids=torch.arange(length).unsqueeze(0),
            packed_seq_params=packed_row(torch.tensor([0, length]), length),
            pictures=shown,
            row_index=row_index,
        )
        return out, lambda value, non_loss_data=False: value

    found = get_forward_backward_func()(
        forward_step_func=step,
        data_iterator=iter([tokens]),
        model=chunk,
        num_microbatches=1,
        seq_length=length,
        micro_batch_size=1,
        forward_only=True,
        collect_non_loss_data=True,
    )
    if not unwrap(chunk).post_process:
        return None
    mine = found[0][0].contiguous()
    parts = [torch.empty_like(mine) for _ in range(top.tensor_size)]
    group = unwrap(chunk).language_model.pg_collection.tp
    dist.all_gather(parts, mine, group=group)
    return torch.cat(parts, dim=-1).float()
