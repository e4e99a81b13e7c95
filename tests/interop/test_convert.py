"""What a conversion refuses, streams, and the command around it."""

from __future__ import annotations

import json
import os
import pickle
import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_vlm.cli.main import main
from megatron_vlm.errors import DataError, UserError
from megatron_vlm.interop.exporting import plan_export, run_export
from megatron_vlm.interop.importing import plan_import, run_import
from megatron_vlm.interop.mapping import Unexpressed
from megatron_vlm.interop.shard_writer import INDEX
from megatron_vlm.interop.sources import open_source
from megatron_vlm.training.checkpoint import checkpoint_config, content_damage
from tests.distributed.ranks import run_ranks
from tests.distributed.tiny_run import SAMPLE
from tests.interop.oracles import base_config

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 150,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
}


def llama_tensors(config: dict[str, Any] = LLAMA) -> dict[str, torch.Tensor]:
    hidden, width = config["hidden_size"], config["intermediate_size"]
    narrow = hidden * config["num_key_value_heads"] // config["num_attention_heads"]
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config["vocab_size"], hidden),
        "model.norm.weight": (hidden,),
        "lm_head.weight": (config["vocab_size"], hidden),
    }
    for number in range(config["num_hidden_layers"]):
        layer = f"model.layers.{number}."
        shapes |= {
            f"{layer}self_attn.q_proj.weight": (hidden, hidden),
            f"{layer}self_attn.k_proj.weight": (narrow, hidden),
            f"{layer}self_attn.v_proj.weight": (narrow, hidden),
            f"{layer}self_attn.o_proj.weight": (hidden, hidden),
            f"{layer}mlp.gate_proj.weight": (width, hidden),
            f"{layer}mlp.up_proj.weight": (width, hidden),
            f"{layer}mlp.down_proj.weight": (hidden, width),
            f"{layer}input_layernorm.weight": (hidden,),
            f"{layer}post_attention_layernorm.weight": (hidden,),
        }
    generator = torch.Generator().manual_seed(3)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def write_folder(folder: Path, tensors: dict[str, torch.Tensor], **config: Any) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({**LLAMA, **config}))
    save_file(tensors, folder / "model.safetensors")
    return folder


def problems_of(folder: Path, *overrides: str) -> list[str]:
    return plan_import([open_source(folder)], base_config(), overrides).problems


def test_a_tensor_that_is_not_mapped_is_named(tmp_path: Path) -> None:
    tensors = llama_tensors() | {"model.layers.0.self_attn.q_proj.lora_a": torch.zeros(2, 2)}
    folder = write_folder(tmp_path / "hf", tensors)
    (line,) = problems_of(folder)
    assert "model.layers.0.self_attn.q_proj.lora_a [2, 2] is not mapped to anything" in line
    with pytest.raises(DataError, match="q_proj.lora_a"):
        run_import(plan_import([open_source(folder)], base_config()), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_tensor_of_another_shape_and_one_that_is_missing_are_named(tmp_path: Path) -> None:
    tensors = llama_tensors()
    tensors["model.layers.1.mlp.up_proj.weight"] = torch.zeros(47, 32)
    del tensors["model.layers.0.input_layernorm.weight"]
    lines = "\n".join(problems_of(write_folder(tmp_path / "hf", tensors)))
    assert "model.layers.1.mlp.up_proj.weight has the shape [47, 32]" in lines
    assert "[48, 32]" in lines
    assert "model.layers.0.input_layernorm.weight is missing" in lines


def test_a_configuration_that_the_weights_do_not_fit_is_named(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "hf", llama_tensors())
    lines = "\n".join(problems_of(folder, "--model.language.num_layers", "1", "--model.language.ffn_hidden_size", "64"))
    assert "model.layers.0.mlp.gate_proj.weight + model.layers.0.mlp.up_proj.weight make" in lines
    assert "would be language_model.decoder.layers.1.mlp.linear_fc2.weight, which the model lacks" in lines


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model_type": "mamba"}, "model_type 'mamba' is not known"),
        ({"model_type": "mixtral"}, "no mixture of experts"),
        ({"model_type": "gemma2"}, "capped by a tanh"),
        ({"model_type": "gemma3_text"}, "rotary base of its own"),
        ({"model_type": "olmo3"}, "sliding window"),
        ({"model_type": "siglip2_vision_model"}, "takes pictures of any shape"),
        ({"model_type": "gpt_neox", "attention_bias": False}, "attention_bias is false"),
        ({"model_type": "olmo", "clip_qkv": 8.0}, "clip_qkv 8.0"),
        ({"model_type": "stablelm", "use_parallel_residual": True}, "share a norm"),
        ({"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 8, "max_position_embeddings": 99}, "sees 8"),
        ({"attention_bias": True}, "attention_bias"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5: transformers' class turns whole heads"),
        ({"model_type": "gemma", "rope_parameters": {"partial_rotary_factor": 0.25}}, "partial_rotary_factor 0.25"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope scaling 'yarn'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 2.0}}, "low_freq_factor"),
        ({"model_type": "mistral", "sliding_window": 128, "max_position_embeddings": 4096}, "sees 128 positions back"),
    ],
)
def test_what_cannot_be_said_is_refused_with_its_reason(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    folder = write_folder(tmp_path / "hf", llama_tensors(), **change)
    with pytest.raises(Unexpressed, match=reason):
        open_source(folder)


def test_the_vocabulary_is_padded_and_cut_back(tmp_path: Path) -> None:
    """Rows that the tokenizer has more words than, and rows that it has fewer words than, which are kept."""
    for rows in (150, 1500):
        config = {**LLAMA, "vocab_size": rows}
        folder = write_folder(tmp_path / f"hf{rows}", llama_tensors(config), vocab_size=rows)
        plan = plan_import([open_source(folder)], base_config(), ["--data.tokenizer", str(SAMPLE / "tokenizer")])
        assert plan.tokenizer is not None
        words = plan.tokenizer.vocab_size
        checkpoint = run_import(plan, tmp_path / f"run{rows}")
        assert content_damage(checkpoint) == []
        language = checkpoint_config(checkpoint).model.language
        out = plan_export(tmp_path / f"run{rows}", "language")
        table = out.tensors.read("language_model.embedding.word_embeddings.weight")
        assert table.shape[0] % 128 == 0
        assert table.shape[0] >= max(rows, words)
        assert -(-words // language.vocab_pad_multiple) * language.vocab_pad_multiple == table.shape[0]
        assert not table[rows:].any()
        run_export(out, tmp_path / f"out{rows}")
        after = load_file(tmp_path / f"out{rows}" / "model.safetensors")["model.embed_tokens.weight"]
        assert after.shape[0] == max(rows, words)
        assert torch.equal(after[:rows], load_file(folder / "model.safetensors")["model.embed_tokens.weight"])


LLAVA: dict[str, Any] = {
    "model_type": "llava",
    "text_config": LLAMA,
    "vision_config": {"model_type": "clip_vision_model", "num_hidden_layers": 2},
}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"vision_feature_layer": [-2, -5]}, "several layers side by side"),
        ({"vision_feature_layer": -3}, "the encoder has 2 layers"),
        ({"vision_feature_select_strategy": "full"}, "takes off 0 of the 1 tokens"),
        ({"projector_hidden_act": "silu"}, "projector_hidden_act 'silu'"),
        ({"vision_config": {"model_type": "fused_dinosiglip"}}, "'fused_dinosiglip' is not known"),
        ({"text_config": {"model_type": "mamba"}}, "'mamba' is not known"),
        ({"text_config": {"model_type": "gpt_neox"}}, "a gpt_neox inside a vision-language model"),
    ],
)
def test_other_llavas_are_refused(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    folder = tmp_path / "llava"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**LLAVA, **change}))
    with pytest.raises(Unexpressed, match=reason):
        open_source(folder)


def test_two_folders_with_the_same_part_are_refused(tmp_path: Path) -> None:
    sources = [open_source(write_folder(tmp_path / name, llama_tensors())) for name in ("a", "b")]
    with pytest.raises(DataError, match="b: its language model is there from another folder"):
        plan_import(sources, base_config())


class _Touch:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)


def test_a_hostile_pickle_is_refused_and_does_nothing(tmp_path: Path) -> None:
    folder, trace = tmp_path / "hf", tmp_path / "touched"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LLAMA))
    torch.save({**llama_tensors(), "extra": _Touch(str(trace))}, folder / "pytorch_model.bin")
    with pytest.raises(DataError, match=r"pytorch_model.bin: refused, it holds more than tensors"):
        open_source(folder)
    assert not trace.exists()
    torch.load(folder / "pytorch_model.bin", weights_only=False)  # what it would have done
    assert trace.exists()


def test_a_hostile_table_of_contents_is_refused_and_does_nothing(tmp_path: Path) -> None:
    trace = tmp_path / "touched"
    checkpoint = run_import(
        plan_import([open_source(write_folder(tmp_path / "hf", llama_tensors()))], base_config()), tmp_path / "run"
    )
    path = checkpoint / ".metadata"
    path.write_bytes(pickle.dumps(_Touch(str(trace))).ljust(path.stat().st_size, b"."))  # the size that was written
    with pytest.raises(DataError, match=r"it names posix.mkdir, which no table of contents holds"):
        plan_export(tmp_path / "run", "language")
    assert not trace.exists()


def test_a_pickle_of_tensors_comes_in_as_safetensors_do(tmp_path: Path) -> None:
    tensors = llama_tensors()
    folder = tmp_path / "pickled"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LLAMA))
    torch.save(tensors, folder / "pytorch_model.bin")
    run_import(plan_import([open_source(folder)], base_config()), tmp_path / "run")
    run_export(plan_export(tmp_path / "run", "language", family="llama"), tmp_path / "out")
    after = load_file(tmp_path / "out" / "model.safetensors")
    assert after.keys() == tensors.keys()
    assert all(torch.equal(after[name], value) for name, value in tensors.items())


def test_shards_and_their_index(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "hf", llama_tensors())
    run_import(plan_import([open_source(folder)], base_config()), tmp_path / "run", file_bytes=40_000)
    assert len(list((tmp_path / "run" / "checkpoints" / "step-00000000").glob("*.distcp"))) > 3
    files = run_export(plan_export(tmp_path / "run", "language"), tmp_path / "out", shard_bytes=30_000)
    assert len(files) > 2
    index = json.loads((tmp_path / "out" / INDEX).read_text())
    assert set(index["weight_map"].values()) == {file.name for file in files}
    assert index["metadata"]["total_size"] == sum(t.numel() * 4 for t in llama_tensors().values())
    again = open_source(tmp_path / "out")
    assert all(torch.equal(again.tensors.read(name), value) for name, value in llama_tensors().items())
    with pytest.raises(UserError, match="there is something in it"):
        run_export(plan_export(tmp_path / "run", "language"), tmp_path / "out")


BIG = {**LLAMA, "vocab_size": 4096, "hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 16}


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _both_ways(folder: Path, to: Path) -> tuple[int, int]:
    """How much the peak of resident memory rose by an import, and by an export after it, in bytes."""
    base = base_config()
    run_import(plan_import([open_source(write_folder(to / "small", llama_tensors()))], base), to / "small_run")
    run_export(plan_export(to / "small_run", "language"), to / "small_out")
    before = _peak()
    run_import(plan_import([open_source(folder)], base), to / "run", file_bytes=8 << 20)
    between = _peak()
    run_export(plan_export(to / "run", "language"), to / "out", shard_bytes=10 << 20)
    return between - before, _peak() - between


@pytest.mark.distributed
@pytest.mark.slow
def test_memory_stays_near_a_shard(tmp_path: Path) -> None:
    """A model of 200 MB in shards of 10 MB: less than a third of it is ever resident, mapped pages included."""
    folder = tmp_path / "hf"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(BIG))
    tensors = llama_tensors(BIG)
    names = list(tensors)
    table = {}
    for number, start in enumerate(range(0, len(names), 8)):
        part = {name: tensors[name] for name in names[start : start + 8]}
        save_file(part, folder / f"model-{number}.safetensors")
        table |= dict.fromkeys(part, f"model-{number}.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": table}))
    size = sum(value.numel() * 4 for value in tensors.values())
    assert size > 180e6
    del tensors
    imported, exported = run_ranks(1, _both_ways, folder, tmp_path)[0]
    assert imported < size / 3
    assert exported < size / 3


def test_the_command_both_ways(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_folder(tmp_path / "hf", llama_tensors())
    into = ["convert", "import", "--from", str(folder), "--to", str(tmp_path / "run"), "--preset", "tiny"]
    assert main([*into, "--dry-run", "--data.sequence_length", "64"]) == 0
    shown = capsys.readouterr().out
    assert "language_model.output_layer.weight [256, 32]  <-  lm_head.weight  (106 rows of zeros added" in shown
    assert "vision.class_token" not in shown
    assert "projector.linear_fc1.weight [32, 512]  (as a new run begins with it)" in shown
    assert "left over: 0" in shown
    assert not (tmp_path / "run").exists()
    assert main([*into, "--data.sequence_length", "64"]) == 0
    assert checkpoint_config(tmp_path / "run" / "checkpoints" / "step-00000000").data.sequence_length == 64
    out = ["convert", "export", str(tmp_path / "run"), "--to", str(tmp_path / "out"), "--part", "language"]
    assert main([*out, "--dtype", "bfloat16", "--family", "mistral"]) == 0
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["model_type"], config["dtype"]) == ("mistral", "bfloat16")
    assert main([*out[:3], "--to", str(tmp_path / "again"), "--part", "language", "--family", "qwen3"]) == 2
    assert "qk_layernorm is False" in capsys.readouterr().err
    broken = write_folder(tmp_path / "broken", llama_tensors() | {"odd": torch.zeros(1)})
    assert main(["convert", "import", "--from", str(broken), "--to", str(tmp_path / "no"), "--dry-run"]) == 2
    assert "odd [1] is not mapped" in capsys.readouterr().out
