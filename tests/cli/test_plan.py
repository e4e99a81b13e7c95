"""`megatron-vlm plan`: what it prints, draws and ends with."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from megatron_vlm.cli import main as cli

LARGE = ["--parallel.tensor_model_parallel_size", "1", "--parallel.sequence_parallel", "false"]
LARGE += ["--schedule.micro_batch_size", "8", "--parallel.recompute", "none"]


def plan(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    assert cli.main(["plan", *arguments]) == code, capsys.readouterr().err
    return capsys.readouterr().out


def as_json(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> Any:
    return json.loads(plan(capsys, "--json", *arguments, code=code))


def test_one_layout(capsys: pytest.CaptureFixture[str]) -> None:
    printed = plan(capsys, "vlm_1b", "--gpus", "64", "--price", "2.5")
    for words in ("64 x h100: tp 1, pp 1, dp 64, bf16", "language 1.44G", "Fits: stage 0 needs", "at 2.5 a GPU-hour"):
        assert words in printed, words
    assert "note: captions: no dataset, documents of 38 tokens and a picture assumed" in printed
    lines = {line.split("  ")[0]: line for line in printed.splitlines()}
    assert lines["text"].split()[4] == "0"
    assert lines["images"].split()[4] == "108"  # 15 % of 256 x 2048 positions, 729 a picture


def test_json_says_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    found = as_json(capsys, "vlm_1b", "--gpus", "64", "--price", "2")
    assert found["cost"] == pytest.approx(2 * found["gpu_hours"])
    assert found["seconds"] == pytest.approx(sum(s["steps"] * s["step_seconds"] for s in found["stretches"]))
    assert found["seconds"] == pytest.approx(found["tokens"] / found["tokens_per_second"])
    assert [stretch["name"] for stretch in found["stretches"]] == ["text", "images"]
    for stretch in found["stretches"]:
        assert sum(stretch["parts"].values()) == pytest.approx(stretch["step_seconds"])
    for stage in found["memory_by_stage"]:
        assert sum(size for name, size in stage.items() if name != "total") == pytest.approx(stage["total"])


def test_assumptions_change_the_plan(capsys: pytest.CaptureFixture[str]) -> None:
    stretches = as_json(capsys, "vlm_1b", "--gpus", "64", "--assume", "captions=729+1")["stretches"]
    assert stretches[1]["visual_share"] == pytest.approx(0.15)
    longer = ["--assume", "text=100000", "--assume", "captions=38+1"]
    assert as_json(capsys, "vlm_1b", "--gpus", "64", *longer)["stretches"][0]["model_flops"] > stretches[0]["model_flops"]


def test_what_does_not_fit_says_what_to_change(capsys: pytest.CaptureFixture[str]) -> None:
    printed = plan(capsys, "vlm_7b", "--gpus", "8", *LARGE, code=1)
    assert "DOES NOT FIT: stage 0 needs" in printed
    assert "most of it is activations" in printed
    assert "  --schedule.micro_batch_size 1  " in printed
    found = as_json(capsys, "vlm_7b", "--gpus", "8", *LARGE, code=1)
    assert found["fits"] is False
    words = [word for override in found["remedies"][0]["overrides"] for word in override.split()]
    assert as_json(capsys, "vlm_7b", "--gpus", "8", *LARGE, *words)["fits"] is True


@pytest.mark.parametrize(
    "words",
    [
        ["vlm_7b", "--gpus", "64", "--vision", "tensor"],
        ["vlm_1b", "--gpus", "8", "--curriculum.stages.1.micro_batch_size", "2"],
        ["vlm_1b", "--gpus", "8", "--parallel.recompute", "selective", "--performance.recompute_modules", "[mlp]"],
        ["vlm_1b", "--gpus", "8", "--performance.cpu_offload_layers", "4"],
    ],
    ids=["layout", "a stage's own size", "modules", "offload"],
)
def test_search_gives_overrides_that_plan_as_it_says(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    found = as_json(capsys, "search", *words, "--top", "3")
    assert len(found["best"]) == 3
    assert [b["seconds"] for b in found["best"]] == sorted(b["seconds"] for b in found["best"])
    for best in found["best"]:
        overrides = [word for override in best["overrides"] for word in override.split()]
        again = as_json(capsys, *words, *overrides)
        assert again["seconds"] == pytest.approx(best["seconds"])
        assert again["layout"] == best["layout"]
        assert again["memory_by_stage"] == best["memory_by_stage"]


def test_low_rank_updates_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    printed = plan(capsys, "vlm_1b", "--gpus", "8", "--model.lora.rank", "16")
    assert "of language only its low-rank updates are trained, 12.8M" in printed
    assert "note: low-rank updates train beside PyTorch's own layers" in printed


LONG = ["--data.sequence_length", "131072", "--schedule.micro_batch_size", "1", "--schedule.global_batch_size", "16"]
LONG += ["--assume", "text=131072"]


def test_a_shared_row(capsys: pytest.CaptureFixture[str]) -> None:
    fields = ["--parallel.context_parallel_size", "4", "--parallel.recompute", "full"]
    printed = plan(capsys, "vlm_1b", "--gpus", "16", *LONG, *fields)
    assert "16 x h100: tp 1, cp 4, pp 1, dp 4, recompute full" in printed
    exchange = next(line.split() for line in printed.splitlines() if line.startswith("context-parallel exchange"))
    assert float(exchange[2]) > 0
    assert as_json(capsys, "vlm_1b", "--gpus", "16", *LONG, *fields)["layout"]["context"] == 4


def test_a_row_too_long_for_a_rank_names_context_parallelism(capsys: pytest.CaptureFixture[str]) -> None:
    printed = plan(capsys, "vlm_1b", "--gpus", "16", *LONG, "--parallel.recompute", "full", code=1)
    assert "  --parallel.context_parallel_size 2  " in printed


def test_search_shares_long_rows(capsys: pytest.CaptureFixture[str]) -> None:
    printed = plan(capsys, "search", "vlm_1b", "--gpus", "16", *LONG, "--top", "2")
    assert ", cp 4, " in printed
    assert "--parallel.context_parallel_size 4" in printed.split("The fastest:")[1]


@pytest.mark.slow
def test_search_prints_a_table_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "plan.png"
    words = ["--gpus", "32", "--gpu", "a100", "--top", "2", "--price", "1", "--out", str(picture)]
    printed = plan(capsys, "search", "vlm_1b", *words)
    assert "layouts tried" in printed
    assert "The fastest:\n  --" in printed
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_picture_of_an_interleaved_pipeline(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "plan.svg"
    layout = ["--parallel.pipeline_model_parallel_size", "4", "--parallel.virtual_pipeline_model_parallel_size", "2"]
    plan(capsys, "vlm_1b", "--gpus", "16", *layout, "--out", str(picture))
    drawn = picture.read_text()
    for word in ("pipeline stage", "forward, other chunk", "idle in the pipeline", "usable of one h100"):
        assert f"<!-- {word}" in drawn, word


def test_a_run_that_no_layout_deals_out(capsys: pytest.CaptureFixture[str]) -> None:
    printed = plan(capsys, "search", "vlm_1b", "--gpus", "4096", "--schedule.global_batch_size", "3", code=1)
    assert "No layout deals this run out to 4096 GPUs" in printed


def test_published(capsys: pytest.CaptureFixture[str]) -> None:
    rows = as_json(capsys, "published")
    assert len(rows) == 25
    assert all(row["predicted_seconds"] / row["published_seconds"] - 1 == pytest.approx(row["error"]) for row in rows)


def test_calibrate_writes_factors_that_plan_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics, factors = tmp_path / "metrics.jsonl", tmp_path / "own.json"
    record = {"kind": "train", "pictures": 0, "seconds": 0.4, "data_wait_seconds": 0.1}
    metrics.write_text("".join(json.dumps({**record, "step": step}) + "\n" for step in range(20)))
    common = ["vlm_1b", "--gpus", "64"]
    printed = plan(capsys, *common, "--calibrate", str(metrics), "--efficiency", str(factors))
    assert f"Wrote {factors}" in printed
    first = as_json(capsys, *common, "--efficiency", str(factors), "--assume", "text=1000")["stretches"][0]
    assert first["step_seconds"] == pytest.approx(0.3, rel=0.02)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "which configuration?"),
        (["vlm_1b", "vlm_7b"], "give one configuration"),
        (["vlm_1b", "--gpu", "v100"], "described are a100, h100, h200, b200"),
        (["vlm_1b", "--gpus", "0"], "--gpus 0 must be at least 1"),
        (["vlm_1b", "--out", "plan.txt"], "ends with none of .png, .svg, .pdf"),
        (["tiny"], "give train_tokens, train_steps"),
        (["vlm_1b", "--gpus", "6"], "does not run on 6 GPUs"),
        (
            ["search", "vlm_1b", "--performance.tp_overlap", "true", "--parallel.layer_spec", "host"],
            "runs in no layout",
        ),
        (["vlm_1b", "--gpus", "6", "--parallel.context_parallel_size", "4"], "tensor x context x pipeline = 1 x 4 x 1"),
        (["vlm_1b", "--gpu", "a100", "--precision", "fp8"], "a100 multiplies in bf16, fp32"),
        (["vlm_1b", "--calibrate", "missing.jsonl"], "give the metrics.jsonl of a run"),
    ],
)
def test_refusals(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", *words]) == 2
    assert message in capsys.readouterr().err


def test_it_needs_no_torch() -> None:
    code = (
        "import sys; from megatron_vlm.cli.main import main; main(['plan', 'search', 'vlm_1b', '--gpus', '8']); "
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
