"""A rank is killed with SIGKILL in the middle of a save: the next start finds a whole one and ends with the same bits."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_vlm.training import checkpoint as checkpoints
from megatron_vlm.training.loop import Run
from tests.distributed.ranks import run_ranks
from tests.distributed.tiny_run import TP2, configuration, one_step, parameters

pytestmark = pytest.mark.distributed

STEPS = 4


def _kill_at(instant: int, folder: Path) -> None:
    """SIGKILL this process at the `instant`-th thing that it does to a file of `folder`."""
    seen = 0

    def count(name: str, args: tuple[Any, ...]) -> None:
        nonlocal seen
        if name.startswith(("os.", "open", "shutil.")) and args and str(folder) in str(args[0]):
            if seen == instant:
                os.kill(os.getpid(), signal.SIGKILL)
            seen += 1

    sys.addaudithook(count)


def _killed(config: Any, rank: int, instant: int, beside: bool) -> str:
    """A good checkpoint of step 1, a second save that does not end. Returns only if that had fewer instants."""
    run = Run(config)
    run._start()
    one_step(run)
    run.save()
    one_step(run)
    run._enter_stage()
    if run.topology.rank == rank:
        _kill_at(instant, checkpoints.checkpoint_folder(config))
    run.save(last=not beside)
    run.saver.finish()
    run.saver.close()
    return "over"


def _rest(config: Any) -> tuple[int, dict[str, Any]]:
    run = Run(config)
    run._start()
    began = run.step
    while run.step < STEPS:
        one_step(run)
    return began, parameters(run)


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    folder = tmp_path_factory.mktemp("whole")
    return run_ranks(2, _rest, configuration(data, TP2, **{"logging.directory": folder}))


@pytest.mark.parametrize("beside", [True, False])
@pytest.mark.parametrize(
    ("rank", "instants"),
    [
        (0, [3, 30]),
        pytest.param(0, range(0, 400, 7), marks=pytest.mark.chaos),
        pytest.param(1, range(0, 400, 7), marks=pytest.mark.chaos),
    ],
)
def test_what_is_whole_is_gone_on_from(
    rank: int, instants: Any, beside: bool, whole: list[Any], data: Path, tmp_path: Path
) -> None:
    found = []
    for instant in instants:
        folder = {"logging.directory": tmp_path / str(instant)}
        try:
            over = run_ranks(2, _killed, configuration(data, TP2, **folder), rank, instant, beside)
        except AssertionError as error:
            if "died without a word" not in str(error):
                raise
            over = []
        rest = run_ranks(2, _rest, configuration(data, TP2, **folder, **{"checkpoint.resume": "auto"}))
        found.append(rest[0][0])
        for (began, ours), (_, theirs) in zip(rest, whole, strict=True):
            assert began in (1, 2)
            assert all(np.array_equal(ours[name], value) for name, value in theirs.items())
        left = [path.name for path in (tmp_path / str(instant) / "checkpoints").iterdir()]
        assert not [name for name in left if name.startswith(".") or name.endswith(".partial")]
        if over:
            break
    assert found == sorted(found)  # the one before, from some instant on the new one
    assert found[0] == 1 or rank == 1
