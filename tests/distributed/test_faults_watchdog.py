"""A rank that stops, dies, stands still or fails ends all others, with a message that names it."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from megatron_vlm.config.run import RunConfig
from megatron_vlm.errors import DataError
from megatron_vlm.training.loop import Run
from tests.distributed.ranks import _child
from tests.distributed.tiny_run import configuration

pytestmark = pytest.mark.distributed

TIMEOUT = 3
BEFORE_THE_LOOP = -1
STAGE = "[{sources: {text: 0.5, captions: 0.5}}]"


def _stop(run: Run) -> None:
    time.sleep(1.5)  # a beat tells where it is
    os.kill(os.getpid(), signal.SIGSTOP)


def _die(run: Run) -> None:
    time.sleep(1.5)
    os.kill(os.getpid(), signal.SIGKILL)


def _stand_still(run: Run) -> None:
    time.sleep(600)


def _fail(run: Run) -> None:
    raise DataError("text.bin, document 3: cannot be read")


def _fail_by_a_defect(run: Run) -> None:
    raise ZeroDivisionError("a defect")


def _go_wrong(config: RunConfig, log: str, victim: int, how: Any, step: int) -> Any:
    """The main program of a rank; its output goes to `log`, a file a rank."""
    rank = int(os.environ["RANK"])
    file = os.open(f"{log}.{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    import faulthandler

    faulthandler.enable(open(2, "w", closefd=False))  # noqa: SIM115  pytest's own goes to its terminal
    run = Run(config)
    batches_of = run.next_step

    def batches() -> Any:
        if rank == victim and run.step == step:
            how(run)  # in the phase 'data', while the others go on to the step's first collective
        return batches_of()

    run.next_step = batches  # type: ignore[method-assign]
    if rank == victim and step == BEFORE_THE_LOOP:
        how(run)
    try:
        return run.train().exit_code
    except Exception as error:
        sys.stderr.write(f"{type(error).__name__}\n")
        sys.stderr.flush()
        os._exit(2 if isinstance(error, DataError) else 1)


def _run(
    ranks: int, config: RunConfig, folder: Path, victim: int, how: Any, step: int = 2
) -> tuple[list[int], list[str], float]:
    """Exit codes and outputs by rank, and seconds from the first end of a rank's process to the last one's."""
    context = multiprocessing.get_context("fork")
    log, store = str(folder / "log"), str(folder / "store")
    processes, pipes = [], []
    for rank in range(ranks):
        mine, theirs = context.Pipe(duplex=False)
        args = (rank, ranks, store, _go_wrong, (config, log, victim, how, step), theirs)
        process = context.Process(target=_child, args=args)
        process.start()
        theirs.close()
        processes.append(process)
        pipes.append(mine)  # held, so that a rank can write its result
    deadline, ends = time.monotonic() + 40, {}
    while len(ends) < ranks and time.monotonic() < deadline:
        for rank, process in enumerate(processes):
            if rank not in ends and process.exitcode is not None:
                ends[rank] = time.monotonic()
        time.sleep(0.02)
    for process in processes:
        process.kill()  # also where this test fails
        process.join()
    assert len(ends) == ranks, f"of {ranks} ranks only {sorted(ends)} ended"
    outputs = [Path(f"{log}.{rank}").read_text(encoding="utf-8") for rank in range(ranks)]
    return [process.exitcode or 0 for process in processes], outputs, max(ends.values()) - min(ends.values())


def _config(data: Path, folder: Path, **fields: Any) -> RunConfig:
    """8 steps; what is slow on a busy machine has two minutes, an ordinary step 3 seconds."""
    common = {"logging.directory": folder, "schedule.train_steps": 8, "curriculum.stages": STAGE}
    return configuration(data, **{**common, "faults.timeout_s": TIMEOUT, "faults.long_timeout_s": 60, **fields})


@pytest.mark.parametrize("victim", [0, 2])
def test_a_stopped_rank_is_named_by_all_and_tells_its_stack(victim: int, data: Path, tmp_path: Path) -> None:
    codes, outputs, _ = _run(3, _three(data, tmp_path), tmp_path, victim, _stop)
    for rank in range(3):
        if rank == victim:
            assert codes[rank] == -signal.SIGABRT
            assert "Fatal Python error: Aborted" in outputs[rank]
            assert "in _stop" in outputs[rank], "the stack of the stopped rank"
        else:
            assert codes[rank] == 71, outputs[rank]
            assert f"rank {victim} (host " in outputs[rank]
            # whichever is seen first; a rank that is ended for it by one of the others has died for the rest
            assert re.search(r"gave no sign of life for 3\.|makes no progress for 3\.|died", outputs[rank])
            assert "at step 2 in phase 'data'" in outputs[rank]
            assert "it is at step 2 in phase 'forward, backward, update'" in outputs[rank]
            assert "waiting in " in outputs[rank]
            assert "in _one_step" in outputs[rank]


def _three(data: Path, folder: Path) -> RunConfig:
    return _config(data, folder, **{"schedule.global_batch_size": 6, "schedule.micro_batch_size": 2})


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_is_named_at_once(victim: int, data: Path, tmp_path: Path) -> None:
    """Far below the time-out: its connection ends with it."""
    config = _config(data, tmp_path, **{"faults.timeout_s": 50})
    codes, outputs, seconds = _run(2, config, tmp_path, victim, _die)
    assert codes[victim] == -signal.SIGKILL
    assert codes[1 - victim] == 71, outputs[1 - victim]
    assert f"rank {victim} (host " in outputs[1 - victim]
    assert "died; it was last seen at step 2 in phase 'data'" in outputs[1 - victim]
    assert seconds < 30


@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_stands_still_is_named_though_it_beats(victim: int, data: Path, tmp_path: Path) -> None:
    codes, outputs, _ = _run(2, _config(data, tmp_path), tmp_path, victim, _stand_still)
    assert codes == [71, 71], outputs
    for output in outputs:
        assert f"rank {victim} (host " in output
        assert "at step 2 in phase 'data', and the others wait for it" in output
    assert "in _stand_still" in outputs[victim], "its stack"


@pytest.mark.parametrize(("how", "code"), [(_fail, 2), (_fail_by_a_defect, 1)])
def test_a_rank_that_fails_tells_the_others_why(how: Any, code: int, data: Path, tmp_path: Path) -> None:
    config = _config(data, tmp_path, **{"faults.timeout_s": 50})
    codes, outputs, _ = _run(2, config, tmp_path, 1, how)
    assert codes == [71, code], outputs
    reason = "DataError: text.bin, document 3: cannot be read" if code == 2 else "ZeroDivisionError: a defect"
    assert f"failed at step 2 in phase 'data': {reason}" in outputs[0]


def _slow_save(run: Run) -> None:
    save = run.save

    def slow(last: bool = True) -> None:
        save(last)
        time.sleep(2 * TIMEOUT if run.topology.rank == 0 else 0)

    run.save = slow  # type: ignore[method-assign]


@pytest.mark.slow
def test_a_long_save_is_no_fault(data: Path, tmp_path: Path) -> None:
    """Rank 0 takes twice the time-out over a save while rank 1 waits for it in the next collective."""
    config = _config(data, tmp_path, **{"checkpoint.save_interval": 4})
    codes, outputs, _ = _run(2, config, tmp_path, 0, _slow_save)
    assert "ends with exit code" not in outputs[0] + outputs[1]
    assert codes == [0, 0], outputs
    assert (tmp_path / "checkpoints" / "step-00000008").is_dir()


def _slow_border(run: Run) -> None:
    """The moments of a large model are gathered, and its optimiser is built anew."""
    enter_stage = run.engine.enter_stage

    def slow(stage: int, anew: bool = False) -> bool:
        time.sleep(TIMEOUT + 1 if stage != run.engine.stage else 0)
        return enter_stage(stage, anew)

    run.engine.enter_stage = slow  # type: ignore[method-assign]


def test_a_slow_border_of_stages_is_no_fault(data: Path, tmp_path: Path) -> None:
    stages = "[{until_steps: 3, sources: {text: 1.0}, freeze: [vision]}, {sources: {text: 1.0}}]"
    config = _config(data, tmp_path, **{"curriculum.stages": stages, "schedule.train_steps": 4})
    codes, outputs, _ = _run(2, config, tmp_path, 0, _slow_border)
    assert codes == [0, 0], outputs


def _come_late(run: Run) -> None:
    time.sleep(TIMEOUT + 1)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_comes_late_to_the_loop_is_waited_for(victim: int, data: Path, tmp_path: Path) -> None:
    """Nobody watches yet; what a rank waits there is no silence of the other one."""
    config = _config(data, tmp_path, **{"schedule.train_steps": 2})
    codes, outputs, _ = _run(2, config, tmp_path, victim, _come_late, step=BEFORE_THE_LOOP)
    assert codes == [0, 0], outputs


def _die_before_a_child(run: Run) -> None:
    child = os.fork()
    if not child:
        time.sleep(60)
        os._exit(0)
    (Path(run.config.logging.directory) / "child").write_text(str(child))
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_child_that_outlives_its_rank_does_not_hide_its_death(data: Path, tmp_path: Path) -> None:
    config = _config(data, tmp_path, **{"faults.timeout_s": 50})
    try:
        codes, outputs, _ = _run(2, config, tmp_path, 1, _die_before_a_child)
    finally:
        os.kill(int((tmp_path / "child").read_text()), signal.SIGKILL)
    assert codes == [71, -signal.SIGKILL], outputs
    assert "died" in outputs[0]
