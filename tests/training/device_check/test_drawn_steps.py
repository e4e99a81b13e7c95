"""Steps on drawn data, which the tests of GPUs are made of, as far as the CPU shows."""

from __future__ import annotations

import pytest
import torch

from megatron_vlm.config.checks import problems
from megatron_vlm.config.loading import load_config
from megatron_vlm.parallel.topology import Topology
from megatron_vlm.planning.hardware import HARDWARE
from megatron_vlm.training.device_check.drawn_steps import TOKENS, configuration, drawn_batches, drawn_lengths
from tests.gpu.drawn_plan import batch_of, plan_for
from tests.gpu.drawn_rank import launch, layout


def place(data_rank: int, data_size: int, stage: int = 0) -> Topology:
    return Topology(torch.device("cpu"), 0, 2 * data_size, 0, 1, stage, 2, data_rank, data_size)


def test_ranks_hold_parts_of_one_batch_and_the_count_of_work_is_of_it() -> None:
    config = configuration("tiny", 3)
    shape = config.shape_of(0)
    whole = drawn_batches(shape, TOKENS, place(0, 1))
    assert len(whole) == shape.global_batch_size // shape.micro_batch_size > 1
    split = [batch for rank in range(2) for batch in drawn_batches(shape, TOKENS, place(rank, 2))]
    assert [batch.tokens.tolist() for batch in split] == [batch.tokens.tolist() for batch in whole]
    assert drawn_batches(shape, TOKENS, place(0, 1, stage=1))[0].pixels is None
    counted = batch_of(config)
    assert counted.positions == sum(batch.tokens.numel() for batch in whole)
    assert counted.pictures == sum(batch.pictures for batch in whole) > 0
    lengths = tuple(length for batch in whole for length in batch.document_lengths)
    assert counted.document_lengths == lengths


@pytest.mark.parametrize("preset", ["vlm_79m", "vlm_1b"])
def test_a_paper_s_pack_begins_with_a_picture_and_is_full(preset: str) -> None:
    shape = configuration(preset, 3).shape_of(0)
    documents = drawn_lengths(shape)
    assert sum(length for length, _ in documents) == shape.sequence_length
    assert [pictured for _, pictured in documents] == [True] + [False] * (len(documents) - 1)


def test_a_plan_is_given_as_options_that_run() -> None:
    planned = plan_for("vlm_79m", 8, HARDWARE["h100"])
    assert planned is not None
    assert planned.plan.fits
    sources = ["--data.sources", "{text: text, captions: captions}"]
    config = configuration("vlm_79m", 8, [*sources, *planned.overrides])
    assert not [line for line in problems(config, 8) if not line.startswith("data.")]
    assert config.parallel.precision == "bf16"
    assert config.schedule == planned.plan.config.schedule
    assert config.parallel.tensor_model_parallel_size == planned.plan.layout.tensor
    assert config.parallel.pipeline_model_parallel_size == planned.plan.layout.pipeline
    assert config.model == load_config(preset="vlm_79m").model


@pytest.mark.slow
@pytest.mark.distributed
def test_layouts_train_alike_on_cpu_ranks() -> None:
    """By the launcher of tests/gpu, which has NCCL there; test_layouts has all layouts on the CPU."""
    alone = launch(1, "tiny", 3, on_cpu=True)
    found = launch(2, "tiny", 3, *layout(tensor_model_parallel_size=2, sequence_parallel=True), on_cpu=True)
    assert found["losses"] == pytest.approx(alone["losses"], abs=2e-6)
    assert found["grad_norms"] == pytest.approx(alone["grad_norms"], rel=3e-5)


@pytest.mark.slow
@pytest.mark.distributed
def test_a_rank_that_fails_is_told_in_its_own_words() -> None:
    with pytest.raises(AssertionError, match="no usable GPU"):
        launch(1, "tiny", 1, "--parallel.device", "cuda", on_cpu=True)
