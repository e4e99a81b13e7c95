"""Bad steps on real ranks: left out to the bit, taken back to a checkpoint, or the end of the run."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_vlm.config.run import RunConfig
from megatron_vlm.training import checkpoint as checkpoints
from megatron_vlm.training.engine import unwrap
from megatron_vlm.training.loop import Run
from megatron_vlm.training.optimizer import read_state
from tests.distributed.ranks import run_ranks
from tests.distributed.tiny_run import PP2, TP2, configuration, one_step

pytestmark = pytest.mark.distributed


def _raw(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().view(torch.uint8).numpy().tobytes()


def _weights(run: Run) -> dict[str, bytes]:
    named = [(f"{number}.{n}", p) for number, chunk in enumerate(run.engine.chunks) for n, p in chunk.named_parameters()]
    return {name: _raw(parameter) for name, parameter in named}


def _bits(run: Run) -> dict[str, bytes]:
    """Parameters, master weights, moments and Adam's count of this rank."""
    state = read_state(run.engine.optimizer, run.engine.ddp)
    counts = {group["step"] for group in run.engine.optimizer.groups if group["params"]}
    flat = {f"{name}.{key}": _raw(value) for name, parts in state.items() for key, value in parts.items()}
    return {**_weights(run), **flat, "count": bytes([*counts, run.engine.updates.made])}


def _spoil(run: Run, what: str, steps: tuple[int, ...]) -> None:
    """Make `steps` bad on the last data-parallel rank alone: its losses, or their gradient by a NaN in the loss mask."""
    if run.topology.data_rank != run.topology.data_size - 1:
        return
    if what == "gradient":
        next_step = run.next_step

        def spoilt() -> Any:
            step = next_step()
            if step is not None and run.step in steps:
                step.batches[0].loss_mask[0, 0] = math.nan
            return step

        run.next_step = spoilt  # type: ignore[method-assign]
        return
    amount = {"loss": math.nan, "spike": 50.0}[what]

    def add(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        return output + amount if run.step in steps and unwrap(module).post_process else output

    for chunk in run.engine.chunks:
        unwrap(chunk).register_forward_hook(add)


def _around_a_bad_step(config: RunConfig, what: str) -> tuple[bool, int]:
    """Whether the bits after step 2, the bad one, are those before it, and the exit code."""
    run = Run(config)
    _spoil(run, what, (2,))
    bits: dict[int, dict[str, bytes]] = {}
    step = run._one_step

    def watched(*args: Any) -> Any:
        with run.engine.whole_parameters():  # those that are gathered with the next forward pass
            bits[run.step] = _bits(run)
        return step(*args)

    run._one_step = watched  # type: ignore[method-assign]
    code = run.train().exit_code
    assert bits[1] != bits[2], "a good step changes them"
    assert bits[3] != bits[4], "the step after the bad one too"
    return bits[2] == bits[3], code


def _records(folder: Path, kind: str) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]


ONE_STAGE = {"curriculum.stages": "[{sources: {text: 0.5, captions: 0.5}}]"}


@pytest.mark.parametrize(
    ("parallel", "what"),
    [
        ({}, "gradient"),
        ({"use_distributed_optimizer": False}, "gradient"),
        ({"overlap_grad_reduce": True, "overlap_param_gather": True}, "gradient"),
        ({"precision": "bf16"}, "loss"),
        ({"precision": "bf16", "use_distributed_optimizer": False}, "gradient"),
        (PP2, "loss"),
        (TP2, "loss"),
    ],
)
def test_a_bad_step_leaves_every_bit(parallel: dict[str, Any], what: str, data: Path, tmp_path: Path) -> None:
    config = configuration(data, parallel, **{"logging.directory": tmp_path}, **ONE_STAGE)
    results = run_ranks(2, _around_a_bad_step, config, what)
    assert results == [(True, 0)] * 2
    (fault,) = _records(tmp_path, "fault")
    assert (fault["step"], fault["action"]) == (2, "skip")
    assert fault["reason"] == ("the loss is nan" if what == "loss" else "the gradient norm is nan")
    assert [record["step"] for record in _records(tmp_path, "train")] == list(range(5))


def _documents(config: RunConfig) -> list[dict[str, list[int]]]:
    run = Run(config)
    run._start()
    found = []
    for _ in range(config.total_steps):
        run._enter_stage()
        plan = run.data.planner.plan_step()
        assert plan is not None
        packs, names = plan.packs, list(run.data.sources)
        found.append({n: sorted({s.document for p in packs for s in p if names[s.source] == n}) for n in names})
        run.step += 1
    return found


def test_a_spike_is_left_out_and_its_documents_are_named(
    data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    fields = {"faults.spike_deviations": 5, "faults.spike_history": 2, "logging.directory": tmp_path}
    config = configuration(data, **fields, **ONE_STAGE)
    assert run_ranks(2, _around_a_bad_step, config, "spike") == [(True, 0)] * 2
    (fault,) = _records(tmp_path, "fault")
    assert fault["reason"].startswith("the loss is a spike: ")
    assert fault["loss"] > 20
    expected = run_ranks(1, _documents, configuration(data, **{"logging.directory": tmp_path / "other"}, **ONE_STAGE))[0][2]
    assert fault["documents"] == {name: numbers for name, numbers in expected.items() if numbers}
    line = next(line for line in capfd.readouterr().out.splitlines() if line.startswith("bad step 2: "))
    assert "its update is left out; documents: text " in line


def _poisoned(config: RunConfig, what: str, steps: tuple[int, ...]) -> tuple[int, int, dict[str, bytes]]:
    run = Run(config)
    _spoil(run, what, steps)
    outcome = run.train()
    return outcome.exit_code, outcome.step, _weights(run)


def _from_checkpoint_past(config: RunConfig, after: int) -> dict[str, bytes]:
    """The parameters of a run that resumes, passes over the steps up to and with `after`, and makes the others."""
    run = Run(config)
    run._start()
    while run.step <= after:
        run._enter_stage()
        run.data.planner.plan_step()
        run.step += 1
    while run.step < config.total_steps:
        one_step(run)
    return _weights(run)


@pytest.mark.parametrize(
    "fields",
    [
        ONE_STAGE,
        # the checkpoint of step 2 lies before the border at which pictures enter, the bad step 4 after it
        {
            "curriculum.stages.0.until_steps": 3,
            "curriculum.stages.0.until": "null",
            "checkpoint.save_at_stage_border": False,
        },
    ],
)
def test_rewound_parameters_are_the_checkpoints_and_the_data_goes_on(
    fields: dict[str, Any], data: Path, tmp_path: Path
) -> None:
    """Steps 2 to 4 are taken back: the rest is what a run resumed at step 2 makes of steps 5 and 6."""
    common: dict[str, Any] = {**fields, "schedule.train_steps": 7, "checkpoint.save_interval": 2}
    config = configuration(data, **common, **{"faults.on_bad_step": "rewind", "logging.directory": tmp_path / "run"})

    # step 4 saves before it is made, and what it saved is damaged: only the checkpoint of step 2 is left to go back to
    results = run_ranks(2, _damaged_checkpoint_4, config)
    assert [result[:2] for result in results] == [(0, 7)] * 2
    (fault,) = _records(tmp_path / "run", "fault")
    assert (fault["step"], fault["action"], fault["rewound_to"]) == (4, "rewind", 2)

    start = checkpoints.step_folder(tmp_path / "run" / "checkpoints", 2)
    again = configuration(data, **common, **{"checkpoint.resume": start, "logging.directory": tmp_path / "again"})
    expected = run_ranks(2, _from_checkpoint_past, again, 4)
    for rank in range(2):
        assert results[rank][2] == expected[rank]


def _damaged_checkpoint_4(config: RunConfig) -> tuple[int, int, dict[str, bytes]]:
    run = Run(config)
    _spoil(run, "loss", (4,))
    save = run.save

    def save_and_damage(last: bool = True) -> None:
        save(last)
        if run.step == 4:
            run.saver.finish()
            if run.is_writer:
                path = max(checkpoints.find_checkpoint(Path(config.logging.directory)).glob("*.distcp"))
                content = bytearray(path.read_bytes())
                content[len(content) // 2] ^= 1
                path.write_bytes(content)

    run.save = save_and_damage  # type: ignore[method-assign]
    outcome = run.train()
    return outcome.exit_code, outcome.step, _weights(run)


def test_without_a_checkpoint_to_go_back_to_the_step_is_skipped(data: Path, tmp_path: Path) -> None:
    config = configuration(data, **{"faults.on_bad_step": "rewind", "logging.directory": tmp_path})
    assert [r[:2] for r in run_ranks(2, _poisoned, config, "gradient", (1,))] == [(0, 5)] * 2
    (fault,) = _records(tmp_path, "fault")
    assert fault["action"] == "skip"


def test_a_run_that_was_taken_back_does_not_return_to_what_it_left(data: Path, tmp_path: Path) -> None:
    """Checkpoints of steps 3 and 6 are there; the run goes on from 3 on purpose, and step 6 is bad."""
    common = {"schedule.train_steps": 7, "logging.directory": tmp_path, "faults.on_bad_step": "rewind", **ONE_STAGE}
    run_ranks(1, _poisoned, configuration(data, **common, **{"checkpoint.save_interval": 3}), "loss", ())
    start = checkpoints.step_folder(tmp_path / "checkpoints", 3)
    again = configuration(data, **common, **{"checkpoint.resume": start, "checkpoint.save_interval": 5})
    assert run_ranks(1, _poisoned, again, "loss", (4, 6))[0][:2] == (0, 7)
    faults = [(fault["step"], fault["rewound_to"]) for fault in _records(tmp_path, "fault")]
    assert faults == [(4, 3), (6, 5)], "what it came from, then what it saved since"


def test_a_rewind_over_a_border_to_a_checkpoint_of_the_stage_before(data: Path, tmp_path: Path) -> None:
    """Saved before the border, where the run was told to end; the first steps of the new stage have nothing else."""
    common = {"logging.directory": tmp_path, "faults.on_bad_step": "rewind"}
    run_ranks(1, _poisoned, configuration(data, **common, **{"schedule.exit_step": 2}), "loss", ())
    again = configuration(data, **common, **{"checkpoint.resume": "auto"})
    assert run_ranks(1, _poisoned, again, "loss", (3,))[0][:2] == (0, 5)
    (fault,) = _records(tmp_path, "fault")
    assert (fault["step"], fault["rewound_to"]) == (3, 2)


def test_stop_ends_at_the_first_bad_step(data: Path, tmp_path: Path) -> None:
    config = configuration(data, **{"faults.on_bad_step": "stop", "logging.directory": tmp_path})
    assert [r[:2] for r in run_ranks(2, _poisoned, config, "loss", (3,))] == [(65, 3)] * 2
    assert _records(tmp_path, "fault")[0]["action"] == "stop"


def test_too_many_bad_steps_end_the_run_with_a_report(data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    config = configuration(data, **{"faults.max_bad_steps": 2, "logging.directory": tmp_path})
    assert [r[:2] for r in run_ranks(2, _poisoned, config, "loss", (1, 2, 3, 4))] == [(65, 3)] * 2
    assert [f["action"] for f in _records(tmp_path, "fault")] == ["skip", "skip", "stop"]
    assert "the run ends at step 3: 3 of the last 100 steps were bad (step 1, 2, 3;" in capfd.readouterr().out
