"""What `megatron-vlm doctor --gpu` does, as far as a machine without a GPU shows: all checks but NVIDIA's on the CPU."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch
import torch.distributed as dist

from megatron_vlm.cli.doctor import report
from megatron_vlm.cli.main import main
from megatron_vlm.ops.native import native_operators
from megatron_vlm.training.device_check import libraries, operators
from megatron_vlm.training.device_check.drawn_steps import DrawnSteps
from megatron_vlm.training.device_check.outcome import LeftOutError, Outcome, attempt
from megatron_vlm.training.device_check.page import STEPS, describe, examine, line
from megatron_vlm.training.device_check.speed import copy_rate, data_sheet, matrix_rate
from megatron_vlm.training.surroundings import Finding
from tests.distributed.ranks import run_ranks

CPU = torch.device("cpu")
without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="says what it does where there is no GPU")


def _examine() -> list[Outcome]:
    dist.destroy_process_group()  # the fork's own
    return examine(CPU)


@pytest.mark.distributed
@without_gpu
def test_every_check_is_made_and_passed_on_the_cpu() -> None:
    found = {outcome.check: outcome for outcome in run_ranks(1, _examine)[0]}
    left = {name for name, outcome in found.items() if outcome.state == "left out"}
    missing = set() if find_spec("nvidia") and find_spec("nvidia.dali") else {"JPEGs by DALI"}
    if native_operators() is None:  # without them the references would be compared with themselves
        missing |= {name for name in found if name.startswith(("fusion", "patches"))}
    assert left == missing | {f"{STEPS} steps, fp8 {recipe}" for recipe in ("delayed", "current", "blockwise", "mxfp8")}
    assert {outcome.state for name, outcome in found.items() if name not in left} == {"ok"}, found
    steps = found[f"{STEPS} steps, fp32"].words
    losses = [float(word) for word in steps.removeprefix("loss ").split(",")[0].split(" -> ")]
    # a model that knows nothing yet of 300 words
    assert losses[0] == pytest.approx(math.log(300), rel=0.1)
    assert len(losses) == STEPS
    assert "layers host" in steps
    assert line(found["memory"]).startswith("OK        memory ")


@without_gpu
def test_without_a_gpu_it_says_so_and_ends_with_3(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--gpu"]) == 3
    page = capsys.readouterr().out
    assert "megatron-core" in page
    assert f"No GPU was tried: {libraries.why_no_gpu()}." in page
    assert main(["doctor", "--gpu", "--json"]) == 3
    found = json.loads(capsys.readouterr().out)
    assert found["checks"] is None
    assert found["no_gpu"] == libraries.why_no_gpu()


@without_gpu
def test_why_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "built without CUDA" in libraries.why_no_gpu()
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "hides every GPU" in libraries.why_no_gpu()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setenv("PATH", "")
    assert "no NVIDIA driver" in libraries.why_no_gpu()
    with pytest.raises(LeftOutError, match="no nvidia-smi"):
        libraries.check_driver()


def test_what_a_driver_says_is_shown(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:  # type: ignore[no-untyped-def]
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho '0, NVIDIA H100, 570.1, 4 MiB, 81559 MiB, 31, 345 MHz, 1980 MHz, 0'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert libraries.check_driver().startswith("0, NVIDIA H100, 570.1")
    program.write_text("#!/bin/sh\necho 'Failed to initialize NVML'\nexit 18\n")
    failed = attempt("driver", libraries.check_driver)
    assert (failed.state, failed.words) == ("failed", "RuntimeError: nvidia-smi ends with 18: Failed to initialize NVML")
    assert "check_driver" in failed.trace


@pytest.mark.skipif(native_operators() is None, reason="the native operators are not built")
def test_operators_that_are_wrong_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    real = operators.fuse_embeddings
    monkeypatch.setattr(operators, "fuse_embeddings", lambda *args: real(*args) * 1.0001)
    with pytest.raises(AssertionError, match="the fused input: .* values differ, by up to"):
        operators.check_fusion(CPU, torch.float32)
    cut = operators.patchify

    def off_by_one(*args, **options):  # type: ignore[no-untyped-def]
        rows, places = cut(*args, **options)
        return rows, places + 1

    monkeypatch.setattr(operators, "patchify", off_by_one)
    with pytest.raises(AssertionError, match="their places: "):
        operators.check_patches(CPU, torch.float32)


def test_steps_that_go_wrong_are_found() -> None:
    good = DrawnSteps((5.7, 5.5, 5.2), (1.0, 1.0, 1.0), (0.4, 0.1, 0.1), 0, "host")
    assert describe(good) == "loss 5.7000 -> 5.5000 -> 5.2000, layers host, 100 ms a step"
    for bad in (replace(good, losses=(5.7, math.nan, 5.2)), replace(good, grad_norms=(1.0, math.inf, 1.0))):
        with pytest.raises(AssertionError, match="not finite"):
            describe(bad)
    with pytest.raises(AssertionError, match="was not learnt"):
        describe(replace(good, losses=(5.7, 5.8, 5.9)))


def test_the_end_of_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    def wrong() -> str:
        raise ValueError("two numbers differ\nby a lot")

    def absent() -> str:
        raise LeftOutError("there is one GPU")

    outcomes = [attempt("memory", lambda: "3 TB/s"), attempt("links", absent)]
    assert report([], outcomes, as_json=False) == 0
    assert capsys.readouterr().out == "\n2 checks: 0 failed, 1 left out\n"
    assert report([Finding("torch", "missing", problem="pip install torch")], outcomes, as_json=False) == 1
    outcomes.append(attempt("fusion", wrong))
    assert line(outcomes[-1]) == "FAILED    fusion                   ValueError: two numbers differ"
    capsys.readouterr()
    assert report([], outcomes, as_json=False) == 1
    page = capsys.readouterr().out
    assert "\nfusion:\nTraceback" in page
    assert "by a lot" in page
    assert "3 checks: 1 failed, 1 left out" in page
    assert report([], outcomes, as_json=True) == 1
    found = json.loads(capsys.readouterr().out)
    assert [check["state"] for check in found["checks"]] == ["ok", "left out", "failed"]
    assert found["no_gpu"] is None


def test_rates_are_those_of_the_work_and_sheets_are_found_by_name() -> None:
    assert 1e6 < copy_rate(CPU, 1 << 20) < 1e13
    assert 1e6 < matrix_rate(CPU, 64, torch.float32) < 1e14
    names = ["NVIDIA H100 80GB HBM3", "NVIDIA A100-SXM4-80GB", "NVIDIA H200", "NVIDIA B200"]
    assert [sheet.name for name in names if (sheet := data_sheet(name))] == ["h100", "a100", "h200", "b200"]
    assert data_sheet("NVIDIA GeForce RTX 4090") is None
