"""Names, shapes and tensor-parallel shardings of the models' parameters, under the host spec or Transformer Engine's.

  python -m tests.models.parameter_table host                      prints the table as JSON
  python -m tests.models.parameter_table transformer_engine > tests/models/parameter_table_te_2.20.2.json

The second needs Transformer Engine, and no GPU: it is how the recorded table beside this file was made (CONTRIBUTING.md says
how to install what it needs). Layers of a block are one entry, once they are seen to be alike.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory

from megatron_vlm.config.loading import load_config, preset_names
from megatron_vlm.config.run import RunConfig
from megatron_vlm.models.initialization import SHARDING_METADATA
from tests.models import without_device

#: what the presets leave out, laid on the tiny one
VARIANTS: dict[str, list[str]] = {
    "plain rmsnorm": ["--model.language.qk_layernorm", "false"],
    "tied layernorm gelu": ["--model.language", "{normalization: layernorm, activation: gelu, untie_embeddings: false}"],
    "qkv biases (Qwen2)": ["--model.language", "{add_qkv_bias: true, qk_layernorm: false}"],
    "parallel residual and biases (GPT-NeoX)": [
        "--model.language",
        "{normalization: layernorm, activation: gelu, add_bias_linear: true, add_qkv_bias: true, parallel_residual: true, "
        "qk_layernorm: false, rotary_percent: 0.25}",
    ],
    "gains about one, geglu (Gemma)": [
        "--model.language",
        "{zero_centered_gamma: true, activation: geglu, kv_channels: 64}",
    ],
    "norms over all heads (open_lm)": [
        "--model.language",
        "{normalization: layernorm_gain, qk_layernorm_full_width: true, num_query_groups: 4}",
    ],
    "CLIP, one layer left out": ["--model.vision", "{kind: clip, activation: quick_gelu, skip_last_layers: 1}"],
    "DINOv2 with registers, three layers": [
        *("--model.vision", "{kind: dinov2, register_tokens: 4, activation: swiglu}"),
        *("--model.projector.kind", "mlp3"),
    ],
    "two encoders": ["--model.vision_second", "{image_size: 64, patch_size: 16, num_layers: 2, kind: dinov2}"],
    "pictures of any shape": ["--data.pictures.resize", "native"],
}


def configurations(layer_spec: str) -> Iterator[tuple[str, RunConfig]]:
    """What the table has: every preset in its own layout and in that of two tensor-parallel ranks, and the variants."""

    def with_spec(config: RunConfig, tp: int, sequence_parallel: bool) -> RunConfig:
        fields = {"tensor_model_parallel_size": tp, "sequence_parallel": sequence_parallel, "layer_spec": layer_spec}
        return replace(config, parallel=replace(config.parallel, **fields))

    for name in preset_names():
        config = load_config(preset=name)
        yield f"{name}, TP 1", with_spec(config, 1, False)
        yield f"{name}, TP 4 with sequence parallelism", with_spec(config, 4 if name != "tiny" else 2, True)
    for name, overrides in VARIANTS.items():
        yield f"{name}, TP 2", with_spec(load_config(preset="tiny", overrides=overrides), 2, False)


def _leaves(value: Any) -> list[ShardedTensor]:
    if isinstance(value, ShardedTensorFactory):
        built = value.build()
        return list(built.values()) if isinstance(built, dict) else list(built)
    return [value] if isinstance(value, ShardedTensor) else []


def parameters(model: torch.nn.Module) -> dict[str, dict[str, Any]]:
    """Checkpoint key -> shapes, this rank's part, and what megatron-core's optimiser and reductions read off the parameter.

    `name` is the parameter's own in the module. Raises ValueError for a trained parameter that no checkpoint would hold.
    """
    own = dict(model.named_parameters())
    sharded = model.sharded_state_dict(metadata=dict(SHARDING_METADATA))
    table: dict[str, dict[str, Any]] = {}
    missing = set(own)
    for name, value in sharded.items():
        leaves = _leaves(value)
        if name not in own:
            if leaves:
                raise ValueError(f"{name} is in the checkpoint and no parameter")
            continue
        missing.discard(name)
        parameter = own[name]
        entry = {
            "name": name,
            "whole": list(leaves[0].global_shape),
            "part": list(parameter.shape),
            "at": [list(leaf.global_offset) for leaf in leaves],
            "dtype": str(parameter.dtype).removeprefix("torch."),
            "tensor_parallel": bool(getattr(parameter, "tensor_model_parallel", False)),
            "sequence_parallel": bool(getattr(parameter, "sequence_parallel", False)),
        }
        if entry["tensor_parallel"]:
            entry["dimension"] = int(parameter.partition_dim)
        table[leaves[0].key] = entry
    for name in missing:
        table[f"not in checkpoints: {name}"] = {"name": name, "part": list(own[name].shape)}
    return table


def folded(table: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Layers of a block as one entry: `layers.*` with their number. Raises ValueError where they are not alike."""
    result: dict[str, dict[str, Any]] = {}
    for key, entry in table.items():
        plain = re.sub(r"\.layers\.\d+\.", ".layers.*.", key)
        same = {**entry, "name": re.sub(r"\.layers\.\d+\.", ".layers.*.", entry["name"])}
        before = result.setdefault(plain, {**same, "layers": 0})
        if {**before, "layers": 0} != {**same, "layers": 0}:
            raise ValueError(f"{key} is unlike another layer's: {same} and {before}")
        before["layers"] += plain != key
    return result


def tables(layer_spec: str) -> dict[str, Any]:
    """Configuration -> the folded table of its last tensor-parallel rank, whose parts begin behind the others'."""
    # on the CPU, where pages that nobody writes take no memory: on meta Transformer Engine puts values off, and with them
    # what it notes on its parameters
    without_device.pretend_device("cpu")
    found: dict[str, Any] = {}
    for name, config in configurations(layer_spec):
        size = config.parallel.tensor_model_parallel_size
        without_device.enter(size - 1, size, config.parallel)
        (model,) = without_device.build(config, "cpu")
        found[name] = folded(parameters(model))
    without_device.leave()
    return found


def as_text(found: dict[str, Any]) -> str:
    """JSON with a line a parameter, so that a change is read in a diff."""
    lines = ["{"]
    for name, table in found.items():
        lines.append(f" {json.dumps(name)}: {{")
        lines += [f"  {json.dumps(key)}: {json.dumps(entry)}," for key, entry in sorted(table.items())]
        lines[-1] = lines[-1].removesuffix(",")
        lines.append(" },")
    lines[-1] = " }"
    return "\n".join([*lines, "}"])


if __name__ == "__main__":
    print(as_text(tables(sys.argv[1])))
