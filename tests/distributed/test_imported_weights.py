"""A decoder and an encoder of two folders begin a run of this project in two layouts; positions of another size."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from megatron_vlm.config.loading import load_config
from megatron_vlm.config.model import LoraConfig
from megatron_vlm.interop.checkpoint_reader import CheckpointTensors
from megatron_vlm.interop.exporting import plan_export, run_export
from megatron_vlm.interop.importing import plan_import, run_import
from megatron_vlm.interop.layouts import GroupedQKV
from megatron_vlm.interop.sources import open_source
from megatron_vlm.training.loop import Run
from tests.distributed.ranks import run_ranks
from tests.distributed.tiny_run import SAMPLE, configuration, one_step, parameters
from tests.interop.oracles import randomized
from tests.interop.test_convert import llama_tensors, write_folder

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

SIDE = 64  # of the pictures that the run is trained with; the encoder's folder has 32


def _tower(folder: Path) -> None:
    import transformers as hf

    sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 64}
    randomized(hf.SiglipVisionModel(hf.SiglipVisionConfig(**sizes, image_size=32, patch_size=16))).save_pretrained(folder)


def _first_step(config: Any, saves: bool = False) -> tuple[dict[str, Any], dict[str, float]]:
    run = Run(config)
    run._start()
    run.step = 3  # with pictures
    run.data.planner.step, run.data.planner.pack = 3, config.packs_before(3)
    before = parameters(run)
    result = one_step(run)
    if saves:
        run._enter_stage()
        run.save()
    return before, result


@pytest.fixture(scope="module")
def imported(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("imported")
    run_ranks(1, _tower, folder / "siglip")
    write_folder(folder / "llama", llama_tensors())
    base = load_config(preset="tiny", overrides=["--data.tokenizer", str(SAMPLE / "tokenizer")])
    sources = [open_source(folder / name) for name in ("llama", "siglip")]
    plan = plan_import(sources, base, ["--model.vision.image_size", str(SIDE)])
    run_import(plan, folder / "start")
    return folder, plan.config


def _run_config(data: Path, folder: Path, model: Any, parallel: dict[str, Any], name: str) -> Any:
    fields = {"checkpoint.start_from": folder / "start", "logging.directory": folder / name}
    return replace(configuration(data, parallel, **fields), model=model)


def test_a_run_begins_with_the_weights_and_trains_alike_in_two_layouts(data: Path, imported: Any) -> None:
    folder, imported_config = imported
    model = imported_config.model
    one, alone = run_ranks(1, _first_step, _run_config(data, folder, model, {}, "one"))[0]
    assert np.array_equal(one["0.language_model.decoder.final_layernorm.weight"], llama_tensors()["model.norm.weight"])
    table = llama_tensors()["model.embed_tokens.weight"].numpy()
    assert np.array_equal(one["0.language_model.embedding.word_embeddings.weight"][:150], table)
    layout = {"tensor_model_parallel_size": 2, "sequence_parallel": True}
    parts = run_ranks(2, _first_step, _run_config(data, folder, model, layout, "two"), True)
    for _, losses in parts:
        assert losses["loss"] == pytest.approx(alone["loss"], abs=2e-6 * abs(alone["loss"]) + 2e-6)


def test_what_ranks_saved_in_parts_goes_out_whole(data: Path, imported: Any) -> None:
    """The checkpoint of two tensor-parallel ranks, with optimiser state, against what one rank loads of it."""
    folder, imported_config = imported
    config = _run_config(data, folder, imported_config.model, {}, "one_again")
    config = replace(config, checkpoint=replace(config.checkpoint, start_from=str(folder / "two")))
    whole = run_ranks(1, _fresh, config)[0]
    plan = plan_export(folder / "two", "language")
    assert plan.problems == []
    assert not np.array_equal(whole["0.language_model.decoder.final_layernorm.weight"], llama_tensors()["model.norm.weight"])
    same = [name for name in plan.tensors.shapes if f"0.{name}" in whole]
    assert len(same) > 20
    for name in same:
        assert np.array_equal(plan.tensors.read(name).numpy(), whole[f"0.{name}"]), name
    run_export(plan, folder / "out")
    out = load_file(folder / "out" / "model.safetensors")
    queries = GroupedQKV(4, 2, 8, 32).join([out[f"model.layers.0.self_attn.{n}_proj.weight"] for n in "qkv"])
    assert np.array_equal(queries, whole["0.language_model.decoder.layers.0.self_attention.linear_qkv.weight"])


def _fresh(config: Any) -> dict[str, Any]:
    run = Run(config)
    run._start()
    return parameters(run)


def test_what_no_folder_holds_begins_as_in_a_new_run(data: Path, imported: Any) -> None:
    folder, imported_config = imported
    config = _run_config(data, folder, imported_config.model, {}, "fresh")
    config = replace(
        config,
        checkpoint=replace(config.checkpoint, start_from=None),
        schedule=replace(config.schedule, seed=imported_config.schedule.seed),
    )
    fresh = run_ranks(1, _fresh, config)[0]
    stored = CheckpointTensors(folder / "start" / "checkpoints" / "step-00000000", LoraConfig())
    projector = [name for name in stored.shapes if name.startswith("projector.")]
    assert len(projector) == 4
    for name in projector:
        assert np.array_equal(stored.read(name).numpy(), fresh[f"0.{name}"]), name


def test_positions_are_interpolated_to_the_size_of_the_run(imported: Any) -> None:
    folder, _ = imported
    stored = CheckpointTensors(folder / "start" / "checkpoints" / "step-00000000", LoraConfig())
    found = stored.read("vision.position_embeddings.weight")
    old = open_source(folder / "siglip").tensors.read("embeddings.position_embedding.weight")
    picture = old.view(1, 2, 2, 32).permute(0, 3, 1, 2)
    expected = F.interpolate(picture, size=(4, 4), mode="bicubic", align_corners=False)
    torch.testing.assert_close(found, expected.permute(0, 2, 3, 1).reshape(16, 32), rtol=0, atol=2e-6)
