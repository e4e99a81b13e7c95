"""Every preset at 8 to 4096 GPUs, in the layouts that the planner chooses: each rank's model is built, without weights.

What the ranks hold together is the model, each number once, by three accounts that know nothing of each other: the planner's
formula, megatron-core's marks on parameters (its gradient norm goes by them), and the parts that checkpoints are written in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod

import pytest
import torch.distributed as dist

from megatron_vlm.config.checks import problems
from megatron_vlm.config.loading import load_config, preset_names
from megatron_vlm.config.parallel import ParallelConfig
from megatron_vlm.config.run import RunConfig
from megatron_vlm.planning.estimate import padded_vocab
from megatron_vlm.planning.hardware import HARDWARE
from megatron_vlm.planning.layout import layout_of
from megatron_vlm.planning.layout_search import candidates, search
from megatron_vlm.planning.parameters import rank_parameters, total_parameters
from megatron_vlm.planning.run_stretches import Stretch
from tests.distributed.ranks import run_ranks
from tests.parallel.meta_ranks import VOCABULARY, LayoutCount, count_layout

pytestmark = pytest.mark.distributed

SOURCES = ["--data.sources", "{text: text, captions: captions}"]
SIZES = (8, 64, 512, 4096)


def at_size(preset: str, gpus: int, *overrides: str) -> RunConfig:
    """A preset's configuration for so many GPUs: as many steps, each of at least a pack for each of them.

    A batch that has fewer cannot be dealt out, and with larger batches but no more tokens the warm-up would outlast the run.
    """
    config = load_config(preset=preset, overrides=[*SOURCES, *overrides])
    schedule = config.schedule
    batch = max(schedule.global_batch_size, gpus)
    if schedule.train_tokens is None:
        schedule = replace(schedule, train_steps=100)
    else:
        schedule = replace(schedule, train_tokens=schedule.train_tokens * batch // schedule.global_batch_size)
    return replace(config, schedule=replace(schedule, global_batch_size=batch))


def stretches(config: RunConfig) -> list[Stretch]:
    shape = config.segments[0].shape
    return [Stretch("text", shape, 100, 0.0, 900.0, ("vision", "projector")), Stretch("images", shape, 100, 0.15, 700.0)]


def planned(config: RunConfig, gpus: int, keep: int) -> list[RunConfig]:
    """The planner's fastest of `keep` layouts, and the fastest of them with each kind of parallelism that it lacks."""
    run = stretches(config)
    found = search(config, HARDWARE["h100"], gpus, run, VOCABULARY, keep=keep, visions=("tensor",)).best
    assert found, f"nothing fits on {gpus} GPUs"
    chosen = {str(found[0].layout): found[0]}
    for has in (
        lambda layout: layout.tensor > 1,
        lambda layout: layout.pipeline > 1 and layout.virtual == 1,
        lambda layout: layout.virtual > 1,
        lambda layout: layout.first_layers is not None,
        lambda layout: layout.tensor > 1 and layout.pipeline > 1,
    ):
        plan = next((plan for plan in found if has(plan.layout)), None)
        if plan is not None and not any(has(one.layout) for one in chosen.values()):
            chosen[str(plan.layout)] = plan
    return [plan.config for plan in chosen.values()]


def deepest(config: RunConfig, gpus: int) -> RunConfig:
    """Of all layouts that the planner tries, the one that cuts the model into most pieces; 32 ranks at most, of a second
    each."""
    found = [candidate.config for candidate in candidates(config, gpus, 8, stretches(config), ("tensor",))]
    return max((one for one in found if _ranks(one) <= 32), key=lambda one: (_ranks(one), _chunks(one)))


def _ranks(config: RunConfig) -> int:
    return config.parallel.tensor_model_parallel_size * config.parallel.pipeline_model_parallel_size


def _chunks(config: RunConfig) -> int:
    return config.parallel.virtual_pipeline_model_parallel_size


def _count(cases: Sequence[tuple[RunConfig, int]]) -> list[LayoutCount]:
    dist.destroy_process_group()  # the fork's own; its ranks are fake
    return [count_layout(config, gpus) for config, gpus in cases]


def counts(cases: Sequence[tuple[RunConfig, int]]) -> list[LayoutCount]:
    """In a fork of this process: megatron-core is imported once, and what is installed there is gone with it."""
    return run_ranks(1, _count, cases, timeout=1500)[0]


def check(config: RunConfig, gpus: int, found: LayoutCount, whole: LayoutCount) -> None:
    assert not [line for line in problems(config, gpus) if not line.startswith("data.")]
    layout, padded = layout_of(config, gpus), padded_vocab(config, VOCABULARY)
    assert [(rank.stage, rank.tensor) for rank in found.ranks] == [
        (stage, tensor) for stage in range(layout.pipeline) for tensor in range(layout.tensor)
    ]
    layers = layout.layers(config.model.language.num_layers)
    for rank in found.ranks:
        expected = rank_parameters(config.model, padded, layout, rank.stage)
        assert {module: rank.held[module] for module in expected} == expected, (str(layout), rank)
        assert rank.layers == layers[rank.stage]
    assert len(whole.ranks) == 1
    model = total_parameters(config.model, padded)
    assert dict(found.counted) == dict(whole.counted) == dict(whole.ranks[0].held) == model, str(layout)
    assert found.shapes == whole.shapes, str(layout)
    assert not found.untiled(), str(layout)
    assert sum(prod(shape) for shape in found.shapes.values()) == sum(model.values())


def check_all(cases: list[tuple[RunConfig, int]]) -> None:
    *found, whole = counts([*cases, (replace(cases[0][0], parallel=ParallelConfig()), 1)])
    for (config, gpus), one in zip(cases, found, strict=True):
        check(config, gpus, one, whole)


@pytest.mark.parametrize(("preset", "gpus"), [("tiny", 64), ("vlm_79m", 8)])
def test_a_rank_holds_what_the_planner_says_and_all_together_the_model(preset: str, gpus: int) -> None:
    check_all([(config, gpus) for config in planned(at_size(preset, gpus), gpus, keep=8)])


def test_an_embedding_that_two_stages_share_counts_once() -> None:
    fields = ["--model.language.untie_embeddings", "false", "--parallel.tensor_model_parallel_size", "2"]
    config = at_size("tiny", 8, *fields, "--parallel.pipeline_model_parallel_size", "2")
    check_all([(config, 8)])


@pytest.mark.parametrize("vision", ["tensor", "data_all_stages"])
def test_ranks_that_share_rows_hold_the_model_whole(vision: str) -> None:
    fields = ["--parallel.context_parallel_size", "4", "--parallel.tensor_model_parallel_size", "2"]
    fields += ["--parallel.pipeline_model_parallel_size", "2", "--parallel.vision", vision]
    check_all([(at_size("tiny", 64, *fields), 64)])


def test_gated_activations_have_a_gate_in_every_count() -> None:
    gated = ["--model.language.activation", "geglu", "--model.vision.activation", "geglu"]
    check_all([(at_size("tiny", 4, *gated, "--parallel.tensor_model_parallel_size", "2"), 4)])


@pytest.mark.slow
@pytest.mark.parametrize("gpus", SIZES)
@pytest.mark.parametrize("preset", preset_names())
def test_every_preset_at_every_size(preset: str, gpus: int) -> None:
    check_all([(config, gpus) for config in planned(at_size(preset, gpus), gpus, keep=80)])
