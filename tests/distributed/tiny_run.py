"""A tiny real run for tests of the parallel stack: bundled pictures and prose, a model of a few thousand parameters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from megatron_vlm.config.loading import load_config
from megatron_vlm.config.run import RunConfig
from megatron_vlm.data.micro_batch import MicroBatch
from megatron_vlm.planning.flops import BatchShape
from megatron_vlm.training.engine import unwrap
from megatron_vlm.training.loop import Run
from megatron_vlm.training.step import train_step
from tests.distributed.ranks import run_ranks

SAMPLE = Path(__file__).resolve().parents[2] / "examples" / "sample_data"

TP2 = {"tensor_model_parallel_size": 2}
PP2 = {"pipeline_model_parallel_size": 2}


def configuration(data: Path, parallel: dict[str, Any] | None = None, **fields: Any) -> RunConfig:
    """5 steps of 8 x 128 positions; pictures enter at step 2, the encoder is frozen before."""
    settings = {
        "data.tokenizer": SAMPLE / "tokenizer",
        "data.sources": f"{{text: '{data / 'text'}', captions: '{data / 'captions'}'}}",
        "data.sequence_length": 128,
        "schedule.train_steps": 5,
        "schedule.warmup_steps": 0,
        "schedule.global_batch_size": 8,
        "schedule.micro_batch_size": 2,
        "optimizer.z_loss": 1e-4,
        **({} if "curriculum.stages" in fields else {"curriculum.stages.0.until": 0.4}),
        "model.language": "{num_layers: 4, hidden_size: 64, num_attention_heads: 8, num_query_groups: 4, "
        "ffn_hidden_size: 128}",
        "model.vision": "{num_layers: 2, hidden_size: 64}",
        "logging.tensorboard": "false",
        "loader.workers": 0,
        **{f"parallel.{name}": value for name, value in (parallel or {}).items()},
        **{name.replace("__", "."): value for name, value in fields.items()},
    }
    overrides = []
    for name, value in settings.items():
        overrides += [f"--{name}", str(value).lower() if isinstance(value, bool) else str(value)]
    return load_config(preset="tiny", overrides=overrides)


def plan_from(run: Run, step: int) -> None:
    """Plan from `step` on, with the first documents."""
    planner = run.data.planner
    planner.step, planner.pack = step, run.config.packs_before(step)


def next_batches(run: Run) -> tuple[list[MicroBatch], BatchShape]:
    """This rank's micro-batches of the coming step, and the shape of the whole global batch."""
    step = run.next_step()
    assert step is not None
    return step.batches, step.shape


def one_step(run: Run) -> dict[str, float]:
    run._enter_stage()
    batches, _ = next_batches(run)
    result = train_step(run.engine, batches, run.topology, run.rate(run.step))
    run.step += 1
    return {"loss": result.loss, "grad_norm": result.grad_norm, **result.losses}


def steps(config: RunConfig, count: int) -> list[dict[str, float]]:
    """Start (or resume) a run and make `count` steps."""
    run = Run(config)
    run._start()
    return [one_step(run) for _ in range(count)]


def steps_and_parameters(config: RunConfig, count: int) -> tuple[list[dict[str, float]], dict[str, Any]]:
    """As `steps`, with the parameters that these end in."""
    run = Run(config)
    run._start()
    found = [one_step(run) for _ in range(count)]
    run.data.close()
    return found, parameters(run)


def steps_and_save(config: RunConfig, count: int) -> tuple[list[dict[str, float]], dict[str, Any]]:
    """The same, and a checkpoint of them."""
    run = Run(config)
    run._start()
    found = [one_step(run) for _ in range(count)]
    run._enter_stage()
    run.save()
    return found, parameters(run)


def parameters(run: Run) -> dict[str, Any]:
    """Copies as numpy arrays, which cross a pipe by value."""
    return {
        f"{number}.{name}": parameter.detach().numpy().copy()
        for number, chunk in enumerate(run.engine.chunks)
        for name, parameter in unwrap(chunk).named_parameters()
    }


def assert_equal_steps(ours: list[dict[str, float]], theirs: list[dict[str, float]], loss: float = 2e-6) -> None:
    """Losses to `loss`, gradient norms to 3e-5 of theirs: what another order of the same sums makes of them."""
    for here, there in zip(ours, theirs, strict=True):
        assert here.keys() == there.keys()
        for key, value in there.items():
            tolerance = 3e-5 * value if key == "grad_norm" else loss
            assert abs(here[key] - value) <= tolerance, (key, here[key], value)


#: ranks, and fields of `parallel`
Ranks = tuple[int, dict[str, Any]]


def assert_goes_on(before: Ranks, after: Ranks, data: Path, folder: Path, whole: list[dict[str, float]]) -> None:
    """A run saved at step 3, where pictures have been trained on, makes its last two steps as the `whole` run does."""
    fields = {"logging.directory": folder}
    run_ranks(before[0], steps_and_save, configuration(data, before[1], **fields), 3)
    rest = run_ranks(after[0], steps, configuration(data, after[1], **fields, **{"checkpoint.resume": "auto"}), 2)[0]
    for ours, theirs in zip(rest, whole[3:], strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-5)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)
