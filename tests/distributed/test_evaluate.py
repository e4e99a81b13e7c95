"""A checkpoint evaluated in another layout gives the same table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_vlm.cli.main import main
from megatron_vlm.interop.importing import plan_import, run_import
from megatron_vlm.interop.sources import open_source
from megatron_vlm.training.loop import Run
from tests.distributed.ranks import run_ranks
from tests.distributed.tiny_run import SAMPLE, TP2, configuration
from tests.interop.oracles import base_config
from tests.interop.test_convert import LLAMA, llama_tensors, write_folder

pytestmark = pytest.mark.distributed

LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "one rank": (1, {}),
    "pp2 x vp2": (2, {"pipeline_model_parallel_size": 2, "virtual_pipeline_model_parallel_size": 2}),
    "dp2": (2, {"tensor_model_parallel_size": 1}),
    "cp2": (2, {"context_parallel_size": 2}),
    "of the training, on a CPU": (2, {"device": "cpu", "layer_spec": "host", "recompute": "full"}),
    "dp2, overlapped": (
        2,
        {"tensor_model_parallel_size": 1, "overlap_grad_reduce": True, "overlap_param_gather": True},
    ),
}


def _train(config: Any) -> None:
    Run(config).train()


def _evaluate(arguments: list[str]) -> int:
    return main(["evaluate", *arguments])


def _results(ranks: int, folder: Path, output: Path, parallel: dict[str, Any], *others: str) -> dict[str, Any]:
    arguments = [str(folder), "--limit", "16", "--output", str(output), *others]
    arguments += ["--naming", f"seen={SAMPLE / 'images' / 'train-00000.tar'}"]
    for name, value in parallel.items():
        arguments += [f"--parallel.{name}", str(value).lower()]
    assert run_ranks(ranks, _evaluate, arguments) == [0] * ranks
    return json.loads(output.read_text())


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A run at TP2, and its evaluation there."""
    folder = tmp_path_factory.mktemp("run")
    held_out = f"{{captions: '{data / 'captions'}'}}"
    run_ranks(2, _train, configuration(data, TP2, **{"logging.directory": folder, "data.validation": held_out}))
    return folder, _results(2, folder, folder / "results.json", {})


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_same_results_elsewhere(name: str, trained: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, expected = trained
    ranks, parallel = LAYOUTS[name]
    _compare(_results(ranks, folder, tmp_path / "results.json", parallel), expected)
    assert expected["held_out"]["captions"]["documents"] == 16
    assert expected["naming"]["seen"]["questions"] == 16


def test_at_another_resolution_and_in_fewer_tokens(trained: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """Of the stage that the checkpoint ended in: pictures of 128 pixels, their 4 x 4 rows averaged to one."""
    folder, own = trained
    others = ["--curriculum.stages.1.image_size", "128", "--curriculum.stages.1.image_pool", "4"]
    alone = _results(1, folder, tmp_path / "alone.json", {"tensor_model_parallel_size": 1}, *others)
    _compare(_results(2, folder, tmp_path / "split.json", {"pipeline_model_parallel_size": 2}, *others), alone)
    assert alone["held_out"]["captions"]["documents"] == 16
    assert alone["held_out"]["captions"]["tokens"] == own["held_out"]["captions"]["tokens"]
    assert alone["held_out"]["captions"]["loss"] != own["held_out"]["captions"]["loss"]


def test_a_checkpoint_imported_without_a_tokenizer(data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Its rows are not those that a run of the tokenizer makes by itself: 5120, where 4096 words would have 4096."""
    for name, words in (("llama", 5000), ("small", 150)):
        tensors = llama_tensors({**LLAMA, "vocab_size": words})
        source = open_source(write_folder(tmp_path / "folders" / name, tensors, vocab_size=words))
        run_import(plan_import([source], base_config()), tmp_path / name)
    given = ["--data.tokenizer", str(SAMPLE / "tokenizer"), "--data.validation.text", str(data / "text"), "--limit", "4"]
    output = tmp_path / "results.json"
    assert run_ranks(2, _evaluate, [str(tmp_path / "llama"), *given, "--output", str(output)]) == [0, 0]
    assert json.loads(output.read_text())["held_out"]["text"]["documents"] > 0
    capfd.readouterr()
    assert run_ranks(1, _evaluate, [str(tmp_path / "small"), *given]) == [2]
    said = capfd.readouterr().err
    assert "has 4096 words" in said
    assert "imported without a tokenizer, 256 rows for them" in said
    assert run_ranks(1, _evaluate, [str(tmp_path / "llama"), "--limit", "4"]) == [2]
    assert "was imported without a tokenizer; give the model's own with --data.tokenizer" in capfd.readouterr().err


def _compare(results: dict[str, Any], expected: dict[str, Any]) -> None:
    assert results["step"] == 5
    assert results["naming"] == expected["naming"]
    for source, theirs in expected["held_out"].items():
        ours = results["held_out"][source]
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            assert ours[key] == (value if isinstance(value, str | None) else pytest.approx(value, abs=2e-5)), key
