"""The language model of a checkpoint as a Hugging Face folder: weights, configuration, tokenizer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from megatron_vlm.config.model import LanguageConfig
from megatron_vlm.config.run import RunConfig
from megatron_vlm.data import atomic_file
from megatron_vlm.data.tokenizer import Tokenizer
from megatron_vlm.errors import DataError, UserError
from megatron_vlm.interop.checkpoint_tensors import CheckpointTensors
from megatron_vlm.interop.language_rules import Rule, language_rules, with_lora
from megatron_vlm.training.checkpoint import checkpoint_config

_SHARD_BYTES = 2_000_000_000


@dataclass(frozen=True)
class Exported:
    """What was written, or would be: our names -> theirs with their shapes; what of the checkpoint is left over."""

    mapping: dict[str, tuple[tuple[str, tuple[int, ...]], ...]]
    left_over: tuple[str, ...]
    parameters: int


def architecture(language: LanguageConfig) -> tuple[str, str]:
    """Class and model type of `transformers` that compute what this language model does.

    Raises:
        UserError: none does, with the reason.
    """
    if language.normalization != "rmsnorm":
        raise UserError(
            f"model.language.normalization is {language.normalization}: no class of transformers has such blocks; only "
            f"rmsnorm can be exported"
        )
    if language.activation != "swiglu":
        raise UserError(f"model.language.activation is {language.activation}: only swiglu can be exported")
    return ("Qwen3ForCausalLM", "qwen3") if language.qk_layernorm else ("LlamaForCausalLM", "llama")


def model_config(config: RunConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    """config.json."""
    language = config.model.language
    name, kind = architecture(language)
    length = max(stage.sequence_length or config.data.sequence_length for stage in config.curriculum.stages)
    rope = {"rope_theta": float(language.rotary_base), "rope_type": "default"}
    found = {
        "architectures": [name],
        "model_type": kind,
        "vocab_size": tokenizer.vocab_size,
        "hidden_size": language.hidden_size,
        "intermediate_size": language.ffn_width,
        "num_hidden_layers": language.num_layers,
        "num_attention_heads": language.num_attention_heads,
        "num_key_value_heads": language.query_groups,
        "head_dim": language.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": language.norm_epsilon,
        "rope_theta": rope["rope_theta"],
        "rope_parameters": rope,
        "max_position_embeddings": length,
        "tie_word_embeddings": not language.untie_embeddings,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eod_id,
        "pad_token_id": tokenizer.pad_id,
    }
    return found | ({"mlp_bias": False} if kind == "llama" else {"use_sliding_window": False})


def export_language(
    place: Path, target: Path | None, dtype: torch.dtype | None = None, shard_bytes: int = _SHARD_BYTES
) -> Exported:
    """Write the language model of a checkpoint into `target`, a new folder; None writes nothing and says what would be.

    Tensors are read, turned and written one by one, so that memory holds a shard at most. Low-rank updates are added to
    their matrices. Encoder and projector are left over.

    Args:
        dtype: of the weights; None: as they were saved.
        shard_bytes: of a .safetensors file at most, but for a tensor that is larger.

    Raises:
        UserError: blocks that no class of transformers has.
        DataError: no whole checkpoint, a tensor that is missing or of another shape, or a folder that is there already.
    """
    tensors = CheckpointTensors(place)
    config = checkpoint_config(tensors.folder)
    tokenizer = Tokenizer.load(Path(config.data.tokenizer))
    described = model_config(config, tokenizer)
    rules = list(language_rules(config.model.language, tokenizer.vocab_size))
    used = {rule.ours for rule in rules}
    missing = sorted(used - set(tensors.shapes))
    if missing:
        raise DataError(
            f"{tensors.folder}: {missing[0]} and {len(missing) - 1} more tensors of its configuration are missing"
        )
    left = tuple(sorted(name for name in tensors.shapes if name not in used and not _is_update(name)))
    if target is None:
        meta = {rule.ours: rule.out(torch.empty(tensors.shapes[rule.ours], device="meta")) for rule in rules}
        mapping = {
            rule.ours: tuple((name, tuple(part.shape)) for name, part in zip(rule.theirs, meta[rule.ours], strict=True))
            for rule in rules
        }
        return Exported(mapping, left, sum(part.numel() for parts in meta.values() for part in parts))
    if target.exists():
        raise DataError(f"{target} is there already; give another folder, or remove it")
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    mapping = {}
    parameters = _write_shards(partial, _parts(rules, tensors, config, dtype, mapping), shard_bytes)
    (partial / "config.json").write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
    tokenizer.save(partial)
    names = tokenizer.special_names
    about = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": names.eod,
        "pad_token": names.pad,
    }
    (partial / "tokenizer_config.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    (partial / "generation_config.json").write_text(
        json.dumps({"eos_token_id": tokenizer.eod_id, "pad_token_id": tokenizer.pad_id}) + "\n", encoding="utf-8"
    )
    for path in partial.iterdir():
        atomic_file.sync_file(path)
    partial.rename(target)
    atomic_file.sync_folder(target.parent)
    return Exported(mapping, left, parameters)


def _is_update(name: str) -> bool:
    return name.endswith((".lora_a", ".lora_b"))


def _parts(
    rules: list[Rule],
    tensors: CheckpointTensors,
    config: RunConfig,
    dtype: torch.dtype | None,
    mapping: dict[str, tuple[tuple[str, tuple[int, ...]], ...]],
) -> Iterator[tuple[str, torch.Tensor]]:
    lora = config.model.lora
    for rule in rules:
        whole = tensors.read(rule.ours)
        root = rule.ours.removesuffix(".weight")
        if lora.rank and f"{root}.lora_a" in tensors.shapes:
            whole = with_lora(whole, tensors.read(f"{root}.lora_a"), tensors.read(f"{root}.lora_b"), lora.alpha / lora.rank)
        parts = [part.to(dtype or whole.dtype).contiguous().clone() for part in rule.out(whole)]
        mapping[rule.ours] = tuple((name, tuple(part.shape)) for name, part in zip(rule.theirs, parts, strict=True))
        yield from zip(rule.theirs, parts, strict=True)


def _write_shards(folder: Path, parts: Iterator[tuple[str, torch.Tensor]], most: int) -> int:
    """model.safetensors, or model-00001-of-0000N.safetensors with their index. Returns the number of parameters."""
    shards: list[list[str]] = []
    held: dict[str, torch.Tensor] = {}
    size = total = parameters = 0

    def flush() -> None:
        nonlocal held, size
        save_file(held, folder / f"shard-{len(shards)}", metadata={"format": "pt"})
        shards.append(list(held))
        held, size = {}, 0

    for name, tensor in parts:
        bytes_of_it = tensor.numel() * tensor.element_size()
        if held and size + bytes_of_it > most:
            flush()
        held[name] = tensor
        size += bytes_of_it
        total += bytes_of_it
        parameters += tensor.numel()
    flush()
    if len(shards) == 1:
        (folder / "shard-0").rename(folder / "model.safetensors")
        return parameters
    files = [f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors" for number in range(len(shards))]
    for number, file in enumerate(files):
        (folder / f"shard-{number}").rename(folder / file)
    index = {
        "metadata": {"total_size": total},
        "weight_map": {n: file for file, s in zip(files, shards, strict=True) for n in s},
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return parameters
