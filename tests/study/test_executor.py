"""A study that is run: once each, gone on after kills, failures contained. The trainer is the real one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron_vlm.cli.main import main
from megatron_vlm.errors import UserError
from megatron_vlm.study.executor import Executor, Resources, needed
from megatron_vlm.study.folder import StudyFolder, last_record, read_records
from megatron_vlm.study.results import read_results
from megatron_vlm.study.segments import Graph, study_graph
from megatron_vlm.study.study_file import read_study
from tests.distributed.conftest import data
from tests.distributed.tiny_run import SAMPLE
from tests.study.cases import graph

__all__ = ["data"]  # the fixture


def test_what_is_needed(tmp_path: Path) -> None:
    """What is done is not asked for, nor what only leads to what is done."""
    found = graph(tmp_path)
    folder = StudyFolder(tmp_path / "out")
    assert needed(found, folder) == list(found.segments)
    branch = next(s for s in found.segments if s.kind == "branch" and s.parent is not None and s.parent.end_step == 100)
    for segment in found.segments:
        if segment is branch or segment.parent is branch:
            folder.of(segment).mkdir(parents=True)
            folder.finish(segment, 1.0)
    left = needed(found, folder)
    assert branch not in left
    assert branch.parent not in left, "nothing else begins at 100 % of that seed"
    assert branch.parent is not None
    assert branch.parent.parent in left


def test_two_runners_refuse_each_other(tmp_path: Path) -> None:
    found, folder = graph(tmp_path), StudyFolder(tmp_path / "out")
    with folder.alone(), pytest.raises(UserError, match="another `study run` is at work"):
        Executor(found, folder, Resources(), print).run()


def test_a_segment_before_its_time_is_refused(tmp_path: Path) -> None:
    found, folder = graph(tmp_path), StudyFolder(tmp_path / "out")
    late = next(s for s in found.segments if s.parent is not None)
    with pytest.raises(UserError, match="where it begins, is not done"):
        Executor(found, folder, Resources(), print).run(late)


def test_states(tmp_path: Path) -> None:
    found, folder = graph(tmp_path), StudyFolder(tmp_path / "out")
    segment = found.segments[0]
    assert folder.state(segment) == "waiting"
    folder.of(segment).mkdir(parents=True)
    folder.begin(segment, "", 1, os.getpid())
    assert folder.state(segment) == "running"
    process = subprocess.Popen([sys.executable, "-c", ""])
    folder.begin(segment, "", 1, process.pid)
    process.wait()
    assert folder.state(segment) == "interrupted"
    (folder.of(segment) / "log.txt").write_text("one\ntwo\n")
    folder.fail(segment, 1, 3)
    assert folder.state(segment) == "failed"
    assert json.loads((folder.of(segment) / "failed.json").read_text())["said"] == ["one", "two"]
    folder.finish(segment, 2.0)
    assert folder.state(segment) == "done"


def test_a_refusal_takes_only_what_begins_with_it(tmp_path: Path) -> None:
    """The datasets are not there: the trainer refuses with exit code 2, which is not tried again."""
    found, folder = graph(tmp_path, grids={}), StudyFolder(tmp_path / "out")
    said: list[str] = []
    outcome = Executor(found, folder, Resources(jobs=2), said.append).run()
    assert [s.kind for s in outcome.failed] == ["trunk"]
    assert [s.kind for s in outcome.skipped] == ["branch", "evaluate"]
    assert outcome.done == []
    failed = json.loads((folder.of(outcome.failed[0]) / "failed.json").read_text())
    assert (failed["exit_code"], failed["attempts"]) == (2, 1)
    assert any("tok" in line for line in failed["said"])


# -- the whole of it ----------------------------------------------------------------------------------------------------


def _study(folder: Path, data: Path) -> Path:
    text = {
        "name": "small",
        "directory": str(folder / "out"),
        "base": {
            "preset": "tiny",
            "data": {
                "tokenizer": str(SAMPLE / "tokenizer"),
                "sources": {"text": str(data / "text"), "captions": str(data / "captions")},
                "validation": {"pictures": str(data / "captions")},
                "validation_documents": 20,
                "sequence_length": 128,
            },
            "model": {
                "language": {"num_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "num_query_groups": 4},
                "vision": {"num_layers": 1, "hidden_size": 64},
            },
            "schedule": {"global_batch_size": 4, "micro_batch_size": 2, "lr": 1e-3, "warmup_steps": 0},
            "checkpoint": {"save_interval": 3},
            "logging": {"tensorboard": False, "eval_interval": 4},
            "loader": {"workers": 0},
        },
        "text": {"sources": {"text": 1.0}, "freeze": ["vision", "projector"]},
        "images": {"sources": {"text": 0.5, "captions": 0.5}, "lr_policy": "cooldown"},
        "length": {"text_steps": 10, "image_steps": 6},
        "axes": {"introduction": [0.5, 1.0]},
        "grids": {"when": {"introduction": "all"}},
        "finetune": {"source": "captions", "stage": {"sources": {"captions": 1.0}}, "epochs": 0.05},
        "evaluate": {"limit": 20},
    }
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(text, sort_keys=False))
    return path


def _command(path: Path, *more: str) -> list[str]:
    return [sys.executable, "-W", "ignore", "-m", "megatron_vlm.cli.main", "study", "run", str(path), *more]


def _losses(folder: StudyFolder, found: Graph) -> dict[str, list[Any]]:
    return {
        segment.key: [
            (record["step"], record["loss"], record["documents"])
            for record in read_records(folder.metrics(segment))
            if record["kind"] == "train"
        ]
        for segment in found.segments
        if segment.kind != "evaluate"
    }


@pytest.mark.slow
@pytest.mark.distributed
def test_killed_and_run_again_it_ends_as_if_it_had_not_been(data: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    assert subprocess.run(_command(_study(whole, data)), env=environment, check=False).returncode == 0

    path = _study(killed, data)
    found, folder = study_graph(read_study(path)), StudyFolder(killed / "out")
    done_at: dict[str, float] = {}
    for wanted in ("trunk", "branch"):
        process = subprocess.Popen(_command(path), env=environment, start_new_session=True)
        segment = next(s for s in reversed(found.segments) if s.kind == wanted)
        until = time.monotonic() + 300
        while (record := last_record(folder.metrics(segment))) is None or record["step"] < segment.first_step + 3:
            assert time.monotonic() < until
            assert process.poll() is None
            time.sleep(0.05)
        running = json.loads((folder.of(segment) / "running.json").read_text())
        os.kill(process.pid, signal.SIGKILL)  # the runner, and the run with it
        os.killpg(running["pid"], signal.SIGKILL)
        process.wait()
        done_at |= {s.key: (folder.of(s) / "done.json").stat().st_mtime for s in found.segments if folder.is_done(s)}
    assert subprocess.run(_command(path, "--jobs", "2"), env=environment, check=False).returncode == 0

    for key, moment in done_at.items():
        segment = next(s for s in found.segments if s.key == key)
        assert (folder.of(segment) / "done.json").stat().st_mtime == moment, "what is done is not run again"
    other = study_graph(read_study(whole / "study.yaml"))
    assert [s.key for s in found.segments] == [s.key for s in other.segments]
    mine, theirs = _losses(folder, found), _losses(StudyFolder(whole / "out"), other)
    for one, two in zip(found.segments, other.segments, strict=True):
        if one.kind in ("trunk", "branch"):
            # a step that was lost with a kill was made again, with the same numbers
            assert {r[0]: r[1:] for r in mine[one.key]} == {r[0]: r[1:] for r in theirs[two.key]}, one.name
    results = read_results(found, folder)
    assert all(result.before is not None and result.after is not None for result in results)

    assert main(["study", "report", str(path)]) == 0
    page = (killed / "out" / "report" / "report.html").read_text()
    assert "When images enter" in page
    assert main(["study", "status", str(path)]) == 0
    assert main(["study", "run", str(path)]) == 0, "nothing is left to run"
