"""Workers that die, hang or meet a signal: real processes, real signals."""

from __future__ import annotations

import io
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from megatron_vlm.config.data import TokenCounts
from megatron_vlm.config.loader import LoaderConfig
from megatron_vlm.config.pictures import PicturesConfig
from megatron_vlm.config.steps import StepShape
from megatron_vlm.data.documents import DocumentSource, Span
from megatron_vlm.data.indexed_reader import IndexedReader
from megatron_vlm.data.indexed_writer import IndexedWriter
from megatron_vlm.data.loader.batch_loader import BatchLoader
from megatron_vlm.data.loader.opening import maker_spec
from megatron_vlm.data.step_plan import MixtureReport, StepPlan
from megatron_vlm.errors import DataError
from tests.data.loader.cases import Case, assert_is, everything, expected, make_case


def loader(case: Case, workers: int, said: list[str], timeout_s: float = 60.0) -> BatchLoader:
    config = LoaderConfig(workers=workers, prefetch_steps=2, timeout_s=timeout_s)
    return BatchLoader(case.spec(), iter(case.plans), everything, config, case.shapes, say=said.append)


def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def is_gone(pid: int) -> bool:
    """Ended: no process, or one that nobody has waited for yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_workers_that_are_killed_at_random_change_nothing(tmp_path: Path) -> None:
    case, said, draw = make_case(tmp_path, steps=24), [], random.Random(3)
    kills = 0
    with loader(case, 2, said) as steps:
        for step, plan in zip(steps, case.plans, strict=True):
            assert step.plan is plan
            assert_is(step.batches, expected(case, plan))
            if kills < 5 and plan.step % 2 and steps.pids:
                os.kill(draw.choice(steps.pids), signal.SIGKILL)
                kills += 1
        assert 1 <= step.faults.died <= 5
        assert step.faults.hung == 0
    assert len(said) == step.faults.died
    assert all(re.fullmatch(r"loader worker \d+ died by signal 9 \(SIGKILL\) .*; another takes its place", s) for s in said)


def test_a_worker_that_hangs_is_named_killed_and_replaced(tmp_path: Path) -> None:
    case, said = make_case(tmp_path, steps=10), []
    with loader(case, 2, said, timeout_s=3) as steps:
        assert_is(next(steps).batches, expected(case, case.plans[0]))
        stopped = steps.pids[0]
        os.kill(stopped, signal.SIGSTOP)
        for step, plan in zip(steps, case.plans[1:], strict=True):
            assert step.plan is plan
            assert_is(step.batches, expected(case, plan))
        assert step.faults.hung == 1
        assert step.faults.died == 0
        assert stopped not in steps.pids
        assert is_gone(stopped)
    (line,) = said
    assert re.search(rf"worker {stopped} hung for \d s while it made micro-batch \d+ \(.*documents .*\), and was", line)


def slow_picture() -> bytes:
    """A PNG that takes a while to decode."""
    stream = io.BytesIO()
    Image.new("L", (6000, 6000), 77).save(stream, "PNG", compress_level=1)
    return stream.getvalue()


def kill_whoever_makes(steps: BatchLoader, number: int, deaths: list[int], enough: int) -> None:
    """SIGKILL to each worker that has a micro-batch first in its hand."""
    while len(deaths) < enough:
        for worker in list(steps._dispatcher._workers):  # type: ignore[union-attr]
            in_hand = list(worker.in_hand)
            if worker.ready and in_hand and in_hand[0].number == number and worker.pid not in deaths:
                os.kill(worker.pid, signal.SIGKILL)
                deaths.append(worker.pid)
        time.sleep(0.002)


@pytest.mark.parametrize("enough", [2, 3])
def test_a_micro_batch_that_ends_every_worker_ends_the_run_and_is_named(tmp_path: Path, enough: int) -> None:
    """As a picture does for which the machine has not the memory. Two deaths are borne, and change nothing."""
    case, said, deaths = make_case(tmp_path, steps=4, first_picture=slow_picture()), [], []
    steps = loader(case, 2, said)
    killer = threading.Thread(target=kill_whoever_makes, args=(steps, 0, deaths, enough))
    with steps:
        killer.start()
        if enough == 3:
            with pytest.raises(
                DataError, match=r"SIGKILL.*micro-batch 0 \(.*/captions: documents 0, 1.*the third worker that"
            ):
                next(steps)
        else:
            for step, plan in zip(steps, case.plans, strict=True):
                assert_is(step.batches, expected(case, plan))
            assert step.faults.died == 2
        killer.join()
    assert sum("micro-batch 0 (" in line for line in said) == enough


def test_a_dataset_that_is_cut_short_under_a_run_is_named(tmp_path: Path) -> None:
    """Reading beyond the end of a mapped file kills a process by SIGBUS: the next worker says why."""
    tokens, said = TokenCounts(100, 0, 1, 2), []
    with IndexedWriter(tmp_path / "long", np.int32) as writer:
        for _ in range(8):
            writer.add_text([5] * 4095 + [0])
            writer.end_document()
    source = DocumentSource("long", IndexedReader(tmp_path / "long"), tokens, 3)
    shape = StepShape(0, 4095, 1, 1, 8, 1, 3)
    plans = [StepPlan(n, shape, ((Span(0, n, 0, 4095),),), {}, MixtureReport()) for n in range(8)]
    spec = maker_spec({"long": source}, tokens, True, PicturesConfig())
    config = LoaderConfig(workers=1, prefetch_steps=1)
    with BatchLoader(spec, iter(plans), everything, config, [shape], say=said.append) as steps:
        assert next(steps).plan.step == 0
        os.truncate(tmp_path / "long.bin", 4 * 4096 * 4)  # the first four documents are left
        for number in range(1, 4):
            assert next(steps).plan.step == number
        with pytest.raises(DataError, match=r"long.bin is truncated"):
            next(steps)
    assert re.search(r"died by signal 7 \(SIGBUS\) while it made micro-batch 4 \(.*long: documents 4\)", said[0])


def test_signals_to_the_group_are_the_ranks_to_answer(tmp_path: Path) -> None:
    case, said = make_case(tmp_path, steps=10), []
    with loader(case, 2, said) as steps:
        assert next(steps).plan.step == 0
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
            for pid in steps.pids:
                os.kill(pid, number)
        rest = list(steps)
    assert [step.plan.step for step in rest] == list(range(1, 10))
    assert (rest[-1].faults.died, said) == (0, [])


RANK = """
import signal, sys
from pathlib import Path
from tests.data.loader.cases import make_case
from tests.data.loader.test_faults import loader

case = make_case(Path(sys.argv[1]))
steps = loader(case, 3, [])
next(steps)
print(*steps.pids, flush=True)
signal.pause()
"""


@pytest.mark.parametrize("stopped", [False, True])
def test_no_worker_outlives_a_rank_that_is_killed(tmp_path: Path, stopped: bool) -> None:
    root = str(Path(__file__).parents[3])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
    rank = subprocess.Popen([sys.executable, "-c", RANK, str(tmp_path)], stdout=subprocess.PIPE, text=True, env=environment)
    assert rank.stdout is not None
    pids = [int(word) for word in rank.stdout.readline().split()]
    assert len(pids) == 3
    assert not any(is_gone(pid) for pid in pids)
    if stopped:
        os.kill(pids[1], signal.SIGSTOP)
    rank.kill()
    rank.wait()
    rank.stdout.close()
    until(lambda: all(is_gone(pid) for pid in pids))


def test_a_worker_that_cannot_start_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    case, said = make_case(tmp_path), []
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\necho 'no such library' >&2\nexit 3\n")
    script.chmod(0o755)
    with (
        loader(case, 2, said) as steps,
        pytest.raises(Exception, match=r"died by exit code 3 before it was ready.*in a row"),
    ):
        next(steps)
    assert "no such library" in capfd.readouterr().err
