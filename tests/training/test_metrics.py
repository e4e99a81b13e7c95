"""metrics.jsonl over resumes and kills, rates without what was not training, and numbers for people."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from megatron_vlm.training import metrics
from megatron_vlm.training.metrics import MetricsLog, Progress, duration, human


def written(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def fill(folder: Path, first: int, last: int, tag: str) -> None:
    log = MetricsLog(folder, first, tensorboard=False)
    for step in range(first, last):
        log.write({"kind": "train", "step": step, "run": tag, "losses": {"text": 1.0}})
    log.close()


def test_a_resume_cuts_the_records_that_come_again(tmp_path: Path) -> None:
    fill(tmp_path, 0, 10, "first")
    fill(tmp_path, 6, 12, "second")
    records = written(tmp_path)
    assert [record["step"] for record in records] == list(range(12))
    assert [record["run"] for record in records] == ["first"] * 6 + ["second"] * 6


def test_what_was_measured_before_the_checkpoint_is_not_made_again_and_is_kept(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "made" / "here", 0, tensorboard=False)
    of_the_step = [{"kind": "speed", "step": 5}, {"kind": "eval", "step": 5}, {"kind": "tasks", "step": 5}]
    for record in (*of_the_step, {"kind": "train", "step": 5}, {"kind": "fault", "step": 5}, {"kind": "eval", "step": 6}):
        log.write(record)
    log.close()
    MetricsLog(tmp_path / "made" / "here", 5, tensorboard=False).close()
    assert written(tmp_path / "made" / "here") == of_the_step


def test_a_run_that_begins_anew_keeps_nothing(tmp_path: Path) -> None:
    fill(tmp_path, 0, 2, "first")
    log = MetricsLog(tmp_path, 2, tensorboard=False)
    log.write({"kind": "eval", "step": 0})
    log.close()
    MetricsLog(tmp_path, 0, tensorboard=False).close()
    assert written(tmp_path) == []


def test_the_board_of_a_resumed_run_has_every_point_once(tmp_path: Path) -> None:
    """It forgets all of the checkpoint's step, so what was measured there is shown again."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    log = MetricsLog(tmp_path, 0, tensorboard=True)
    for step in range(7):
        log.write({"kind": "train", "step": step, "loss": 1.0})
    for step in (5, 7):
        log.write({"kind": "speed", "step": step, "tokens_per_second": 9.0})
        log.write({"kind": "eval", "step": step, "losses": {"held": 2.0}})
        log.write({"kind": "tasks", "step": step, "scores": {"pope": 0.5}})
    log.close()
    log = MetricsLog(tmp_path, 5, tensorboard=True)
    log.write({"kind": "train", "step": 5, "loss": 1.0})
    log.close()
    board = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert {tag: [event.step for event in board.Scalars(tag)] for tag in board.Tags()["scalars"]} == {
        "train/loss": list(range(6)),
        "speed/tokens_per_second": [5],
        "eval/losses/held": [5],
        "tasks/scores/pope": [5],
    }


@pytest.mark.parametrize("cut", [1, 10, 30])
def test_the_half_line_of_a_killed_run_is_dropped(tmp_path: Path, cut: int) -> None:
    fill(tmp_path, 0, 5, "killed")
    path = tmp_path / "metrics.jsonl"
    whole = path.read_bytes()
    last_line = len(whole.splitlines(keepends=True)[-1])
    path.write_bytes(whole[: len(whole) - last_line + cut])
    fill(tmp_path, 5, 7, "resumed")
    assert [record["step"] for record in written(tmp_path)] == [0, 1, 2, 3, 5, 6]
    assert not list(tmp_path.glob("*.partial"))


def test_a_record_can_be_read_as_soon_as_it_is_written(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, 0, tensorboard=False)
    log.write({"kind": "train", "step": 0})
    assert written(tmp_path) == [{"kind": "train", "step": 0}]
    log.close()


def test_tensorboard_gets_every_number_under_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scalars: list[tuple[str, float, int]] = []

    class Board:
        def __init__(self, folder: str, purge_step: int | None) -> None:
            assert (folder, purge_step) == (str(tmp_path / "tensorboard"), 3)

        def add_scalar(self, name: str, value: float, step: int) -> None:
            scalars.append((name, value, step))

        def close(self) -> None:
            scalars.append(("closed", 0, 0))

    monkeypatch.setattr("torch.utils.tensorboard.SummaryWriter", Board)
    log = MetricsLog(tmp_path, 3, tensorboard=True)
    log.write({"kind": "train", "step": 3, "lr": 0.5, "stage": "text", "ok": True, "losses": {"text": 2}})
    log.close()
    assert scalars == [("train/lr", 0.5, 3), ("train/losses/text", 2.0, 3), ("closed", 0, 0)]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: now[0])
    return now


def test_rates_count_training_and_no_pause(clock: list[float]) -> None:
    progress = Progress(100, peak_flops=1000.0, ranks=2)
    for _ in range(4):
        clock[0] += 1.0
        progress.add(positions=50, flops=600, waited=0.25)
    assert progress.pause() == 4.0
    clock[0] += 1000.0  # an evaluation
    progress.unpause()
    assert progress.rates() == {
        "tokens_per_second": 50.0,
        "model_flops_per_second": 600.0,
        "seconds_per_step": 1.0,
        "data_wait_share": 0.25,
        "model_flops_utilisation": 0.3,
    }
    clock[0] += 2.0
    progress.add(10, 10, 0.0)
    assert progress.rates()["tokens_per_second"] == 5.0, "a new interval began"


def test_the_line_says_where_the_run_stands(clock: list[float]) -> None:
    out = io.StringIO()
    progress = Progress(100, peak_flops=None, ranks=1, out=out)
    clock[0] += 2.0
    progress.add(3000, 4 * 10**9, 0.0)
    progress.line(40, "images", {"text": 2.5, "caption": 1.25}, progress.rates(), lr=1e-3, norm=0.5)
    assert out.getvalue() == (
        "step 40/100 | images | text 2.500 caption 1.250 | lr 1.00e-03 | grad 0.50 | 1.5k tokens/s | 2GFLOP/s | ETA 2:00\n"
    )


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (999, "999"), (1234567, "1.23M"), (-2.5e9, "-2.5G"), (1e12, "1T"), (3.2e15, "3.2P")]
)
def test_numbers_for_people(value: float, text: str) -> None:
    assert human(value) == text


@pytest.mark.parametrize(("seconds", "text"), [(0.9, "0:00"), (61, "1:01"), (3599, "59:59"), (3661, "1:01:01")])
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
