"""The benchmarks run, agree with themselves, and write what they say they write."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
#: the smallest settings of each
SMALL = {
    "bench_assemble": ["--packs", "2", "--sequence-length", "256", "--runs", "1"],
    "bench_fusion": ["--batch", "1", "--sequence-length", "1024", "--hidden", "64", "--vocab", "500", "--runs", "1"],
    "bench_loader": ["--pictures", "12", "--samples", "12", "--runs", "1"],
    "bench_patchify": ["--pictures", "2", "--runs", "1", "--without-compile"],
    "bench_pictures": ["--pictures", "2", "--source", "64", "--size", "32", "--runs", "1"],
    "bench_preprocess": [
        *("--megabytes", "0.2", "--slow-megabytes", "0.1", "--pairs", "64", "--vocabulary", "600", "--runs", "1"),
    ],
    "bench_reader": ["--documents", "5000", "--reads", "50", "--pictures", "5", "--runs", "1"],
    "bench_planner": ["--documents", "2000", "--packs", "20", "--runs", "1", "--large", "5000"],
    "bench_attention": ["--positions", "128", "--runs", "1"],
    "bench_packing": ["--documents", "5000", "--ranks", "4", "--runs", "1"],
    "bench_evaluation": ["--questions", "8", "--runs", "1"],
    "bench_checkpoint": ["--megabytes", "20", "--ranks", "1", "--runs", "1"],
    "bench_kept_features": ["--pictures", "16", "--runs", "1"],
    "bench_context_parallel": ["--documents", "200"],
    "bench_step": ["--sequence-length", "16", "--runs", "1"],
}
#: these have nothing to measure on a machine without CUDA
ON_GPU = {"bench_kernels_gpu"}
#: these compare with a library that is not installed by `make test`
NEEDS = {"bench_evaluation": "lm_eval"}


def run(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "ignore", str(FOLDER / f"{name}.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False)


def test_every_benchmark_is_listed() -> None:
    found = {path.stem for path in FOLDER.glob("bench_*.py")}
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert found == set(SMALL) | ON_GPU
    assert all(f"## {name}.py" in readme for name in found)


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_a_small_run(name: str, tmp_path: Path) -> None:
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    assert "--json" in run(name, "--help").stdout
    file = tmp_path / "results.json"
    done = run(name, *SMALL[name], "--json", str(file))
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("\n") >= 4
    written = json.loads(file.read_text(encoding="utf-8"))
    assert written["settings"]["runs"] == 1
    assert written["results"]


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(ON_GPU))
def test_without_a_gpu_it_says_so(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "--json" in run(name, "--help").stdout
    done = run(name)
    assert done.returncode != 0
    assert done.stderr == f"{name}: there is no CUDA device here, so there is nothing to measure\n"
