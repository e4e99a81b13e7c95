"""Weights saved under one layer spec and loaded under the other, in one process without a GPU.

  python -m tests.models.exchanged_checkpoints FOLDER

Needs Transformer Engine. Prints a line of JSON a configuration: how many parameters were compared, and those whose bits are
not the ones that were saved.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

from megatron_vlm.config.loading import load_config
from megatron_vlm.config.run import RunConfig
from megatron_vlm.models.initialization import initialize_parameters, sharded_parameters
from megatron_vlm.models.vlm import VisionLanguageModel
from megatron_vlm.training.checkpoint.state import SHARDING, load_model
from tests.models import without_device
from tests.models.parameter_table import VARIANTS


def _under(config: RunConfig, layer_spec: Any) -> VisionLanguageModel:
    (model,) = without_device.build(replace(config, parallel=replace(config.parallel, layer_spec=layer_spec)), "cpu")
    return model


def _bits(model: VisionLanguageModel) -> dict[tuple[str, tuple[int, ...]], torch.Tensor]:
    return {(shard.key, shard.global_offset): shard.data.clone() for shard in sharded_parameters([model])}


def _unlike(found: dict[Any, torch.Tensor], wanted: dict[Any, torch.Tensor]) -> list[str]:
    return [str(key) for key in wanted if key not in found or not torch.equal(found[key], wanted[key])]


def exchange(config: RunConfig, saver: str, loader: str, folder: Path) -> dict[str, Any]:
    """First weights under both specs, then random ones saved under `saver` and loaded under `loader`."""
    first, second = _under(config, saver), _under(config, loader)
    for model in (first, second):
        initialize_parameters([model], config.model.language, seed=3)
    drawn = _unlike(_bits(second), _bits(first))
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for shard in sharded_parameters([first]):
            shard.data.copy_(torch.randn(shard.data.shape, generator=generator))
    folder.mkdir(parents=True)
    dist_checkpointing.save({"model": first.sharded_state_dict(metadata=dict(SHARDING))}, str(folder))
    load_model(SimpleNamespace(chunks=[second]), folder)  # type: ignore[arg-type]
    zeros = [n for n, p in second.named_parameters() if second.leaves_out(n) and p.detach().any()]
    return {
        "parameters": len(_bits(first)),
        "first weights unlike": drawn,
        "loaded unlike": _unlike(_bits(second), _bits(first)),
        "not zero": zeros,
    }


def main(folder: Path) -> None:
    without_device.pretend_device("cpu")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    parallel_state.initialize_model_parallel(create_gloo_process_groups=False)
    model_parallel_cuda_manual_seed(1)
    for number, (name, overrides) in enumerate({"tiny": [], **VARIANTS}.items()):
        config = load_config(preset="tiny", overrides=overrides)
        for saver, loader in (("host", "transformer_engine"), ("transformer_engine", "host")):
            found = exchange(config, saver, loader, folder / f"{number}-{saver}")
            print(json.dumps({"configuration": name, "saved under": saver, **found}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
