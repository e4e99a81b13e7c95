"""Ranks that share a row: what each of them computes, keeps and sends, by hand; and the search that lays them out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from megatron.core.parallel_state import RankGenerator

from megatron_vlm.config.checks import problems
from megatron_vlm.config.loading import load_config
from megatron_vlm.config.run import RunConfig
from megatron_vlm.errors import ConfigError
from megatron_vlm.planning.communication import context_layer_bytes, context_row_bytes, links, picture_row_bytes
from megatron_vlm.planning.context_sizes import context_sizes
from megatron_vlm.planning.efficiency import Efficiency
from megatron_vlm.planning.estimate import estimate
from megatron_vlm.planning.hardware import HARDWARE
from megatron_vlm.planning.layout import Layout, layout_of
from megatron_vlm.planning.layout_search import candidates, search
from megatron_vlm.planning.memory import encoded_pictures, rank_memory
from megatron_vlm.planning.remedies import remedies
from megatron_vlm.planning.run_stretches import Stretch
from megatron_vlm.planning.stage_work import PipelineWork, pipeline_work
from megatron_vlm.planning.step_time import step_time

H100 = HARDWARE["h100"]
VOCABULARY = 50304
#: nothing but work: no gaps between kernels
SMOOTH = Efficiency(kernel_gap=0.0)
SOURCES = ["--data.sources", "{text: text, captions: captions}"]
#: 24 layers of width 2048, 16 heads and groups of 128; micro-batches of 4 rows of 2048
CONFIG = load_config(preset="vlm_1b", overrides=SOURCES)
SHAPE = CONFIG.segments[0].shape
POSITIONS, LAYERS, KEYS, HIDDEN = 4 * 2048, 24, 16 * 128, 2048


def work(layout: Layout, pictures: float = 0, efficiency: Efficiency = SMOOTH, **options: Any) -> PipelineWork:
    lengths = (2048,) * 4
    return pipeline_work(CONFIG, VOCABULARY, layout, SHAPE, pictures, lengths, H100, efficiency, **options)


def memory(layout: Layout, pictures: float = 0, stage: int = 0) -> dict[str, float]:
    return rank_memory(CONFIG, VOCABULARY, layout, SHAPE, stage, pictures).items()


def test_a_layout_has_what_its_configuration_says() -> None:
    fields = ["--parallel.tensor_model_parallel_size", "2", "--parallel.context_parallel_size", "4"]
    config = load_config(preset="vlm_1b", overrides=[*fields, "--parallel.pipeline_model_parallel_size", "3"])
    layout = layout_of(config, 96)
    assert (layout.context, layout.data, layout.replicas) == (4, 4, 16)
    assert str(layout) == "tp 2, cp 4, pp 3, dp 4"
    assert str(Layout(8, 2)) == "tp 2, pp 1, dp 4"
    assert layout.gpus == config.parallel.model_ranks * layout.data
    assert layout.positions(SHAPE) == POSITIONS / 4


@pytest.mark.parametrize(("tensor", "context", "pipeline"), [(1, 2, 1), (2, 2, 2), (1, 16, 2), (4, 4, 1), (8, 2, 4)])
def test_nodes_hold_the_ranks_that_megatron_core_puts_there(tensor: int, context: int, pipeline: int) -> None:
    layout = Layout(128, tensor, pipeline, context=context)
    ranks = RankGenerator(tensor, 1, layout.data, pipeline, context, "tp-cp-ep-dp-pp")

    def inside(group: str) -> set[int]:
        """Members of each group in the node of its first one."""
        return {sum(rank // 8 == members[0] // 8 for rank in members) for members in ranks.get_ranks(group)}

    assert inside("cp") == {layout.context_in_node(8)}
    assert inside("cp-dp") == {layout.replicas_in_node(8)}


def test_bytes_of_gathered_keys_and_values() -> None:
    """From each of three others, `[1000, 2 * 8 groups, 128]` in bf16."""
    layout = Layout(8, tensor=2, context=4)
    assert context_layer_bytes(CONFIG.model, layout, 1000, 2) == 3 * 1000 * 2 * 8 * 128 * 2
    assert context_layer_bytes(CONFIG.model, Layout(8, tensor=2), 1000, 2) == 0


@pytest.mark.parametrize(("vision", "ranks"), [("tensor", 4), ("data_first_stage", 8), ("data_all_stages", 16)])
def test_rows_of_pictures_come_from_all_that_encoded_them(vision: Any, ranks: int) -> None:
    """4 context-parallel ranks, 2 tensor-parallel ones, 2 stages: each takes the rows of all others."""
    layout = Layout(16, tensor=2, pipeline=2, context=4, vision=vision)
    bytes_ = picture_row_bytes(CONFIG.model, layout, 1600, 2) + context_row_bytes(CONFIG.model, layout, 1600, 2)
    assert bytes_ == 1600 / ranks * (ranks - 1) * HIDDEN * 2


def test_a_group_that_leaves_its_node_has_the_network() -> None:
    exact = Efficiency(node=1.0, network=1.0)
    assert links(Layout(8, context=8), H100, exact).context == H100.node_bandwidth
    assert links(Layout(64, tensor=8, context=2), H100, exact).context == H100.network_bandwidth
    assert links(Layout(64, tensor=2, context=8), H100, exact).context == 4 * H100.network_bandwidth


def test_each_of_two_ranks_has_half_of_the_work() -> None:
    shared = Layout(8, pipeline=2, context=2)
    one, two = work(Layout(4, pipeline=2), 4), work(shared, 4)
    for stage in (0, 1):
        for whole, half in ((one.forward, two.forward), (one.backward, two.backward)):
            for part in ("matrices", "attention", "streaming", "head"):
                assert getattr(half[stage][0], part) == pytest.approx(getattr(whole[stage][0], part) / 2)
    assert two.transfer == one.transfer / 2
    # of 4 pictures each encodes 2, and all rows are gathered
    rows = context_row_bytes(CONFIG.model, shared, 4 * 729, 2) / links(shared, H100, SMOOTH).context
    assert two.forward[0][0].encoder == pytest.approx(one.forward[0][0].encoder / 2 + rows)
    assert two.backward[0][0].encoder == pytest.approx(one.backward[0][0].encoder / 2 + rows)


@pytest.mark.parametrize(
    ("recompute", "modules", "backward"),
    # gradients are scattered once; where attention is computed again, its keys and values are gathered again
    [("none", ("core_attn",), 1), ("selective", ("mlp",), 1), ("selective", ("core_attn",), 2), ("full", ("core_attn",), 2)],
)
def test_seconds_of_the_gather(recompute: Any, modules: tuple[str, ...], backward: int) -> None:
    layout = Layout(8, context=4, recompute=recompute, recompute_modules=modules)
    found = work(layout)
    one = LAYERS * 3 * (POSITIONS / 4 * 2 * KEYS * 2) / (H100.node_bandwidth * SMOOTH.node)
    assert found.forward[0][0].context == pytest.approx(one)
    assert found.backward[0][0].context == pytest.approx(backward * one)
    assert work(Layout(8)).forward[0][0].context == 0


def test_a_rank_keeps_its_half() -> None:
    """As many data-parallel ranks in both, so as many micro-batches of a step. Each piece of the row is a pack."""
    one, two = memory(Layout(8), 4), memory(Layout(16, context=2), 4)
    assert two["activations"] == one["activations"] / 2
    assert two["logits"] == one["logits"] / 2
    assert two["optimizer"] == pytest.approx(one["optimizer"] / 2)
    assert all(two[name] == one[name] for name in ("weights", "gradients", "batches"))
    rows = 4 * 729 * HIDDEN * 2  # of all pictures, on each
    assert two["encoder"] - rows == (one["encoder"] - rows) / 2


@pytest.mark.parametrize(
    ("packs", "context", "kept"),
    [
        (1, 2, 2.5),  # of pieces 0 to 3: the first rank asks 0 and 3, for the keys of 0 and of 0 to 3; the second as many
        (1, 8, 8.5),
        (2, 2, 2.0),  # both of a rank's may go on with another
        (4, 2, 1.0),
        (4, 8, 4.0),  # four pieces a pack: before each of a rank's two, three at most
    ],
)
def test_keys_before_a_piece_are_kept_too(packs: int, context: int, kept: float) -> None:
    shape = replace(SHAPE, micro_batch_size=packs, sequence_length=POSITIONS // packs)
    one, more = Layout(8), Layout(8 * context, context=context)
    assert more.kept_keys(shape) == kept
    whole, part = (rank_memory(CONFIG, VOCABULARY, layout, shape, 0, 0).items()["activations"] for layout in (one, more))
    assert context * part - whole == LAYERS * POSITIONS * 2 * KEYS * 2 * (kept - 1)


@pytest.mark.parametrize("recompute", ["selective", "full"])
def test_what_is_gathered_again_is_not_kept(recompute: Any) -> None:
    one, two = memory(Layout(8, recompute=recompute)), memory(Layout(16, context=2, recompute=recompute))
    assert two["activations"] == one["activations"] / 2


def test_gradients_of_many_gathered_keys_are_the_widest() -> None:
    """Of 16 ranks, whose keys and values are 16 times as many as a rank's own: 2 x 16 x 2048 a position."""
    found = memory(Layout(16, context=16))
    assert found["working"] == POSITIONS / 16 * 2 * 16 * KEYS * 2


def test_pictures_of_a_step_are_shared_by_the_ranks_of_all_stages() -> None:
    """Of 32 micro-batches with 4 pictures: 64 on each rank of two stages, 32 with two context-parallel ranks besides."""
    one, two = (Layout(gpus, pipeline=2, context=context, vision="data_all_stages") for gpus, context in ((4, 1), (8, 2)))
    assert encoded_pictures(one, 128) == 64
    assert encoded_pictures(two, 128) == 32
    assert encoded_pictures(two, 2) == 1, "a picture is whole"
    free = replace(SMOOTH, node=1e9, network=1e9)
    before, shared = work(one, 4, free), work(two, 4, free)
    assert shared.before == pytest.approx(before.before / 2, rel=1e-6)
    assert shared.after == pytest.approx(before.after / 2, rel=1e-6)
    kept, rows = memory(two, 4, stage=1)["encoder"], 32 * 4 * 729 * HIDDEN * 2
    assert kept == pytest.approx(memory(one, 4, stage=1)["encoder"] / 2)
    assert memory(two, 4)["encoder"] == pytest.approx(kept + rows), "all rows of the step, on the first stage"


def test_gradients_are_reduced_over_all_ranks_with_the_same_weights() -> None:
    """Two context-parallel ranks of four are four ranks of the same ring."""
    plain, shared = (
        step_time(CONFIG, VOCABULARY, Layout(16, context=context), SHAPE, 0, (2048,) * 4, H100, SMOOTH) for context in (1, 2)
    )
    assert shared.data_exchange == plain.data_exchange > 0
    assert shared.optimizer == plain.optimizer


def test_gpus_that_do_not_go_into_groups_are_refused() -> None:
    config = load_config(preset="vlm_1b", overrides=["--parallel.context_parallel_size", "4"])
    with pytest.raises(ConfigError, match=r"--gpus 6: tensor x context x pipeline = 4 does not divide it; nearest: 4"):
        estimate(config, H100, 6, [Stretch("text", SHAPE, 1)], 50277)


def long_run(length: int, *overrides: str, batch: int = 16, share: float = 0.0) -> tuple[RunConfig, list[Stretch]]:
    fields = ["--data.sequence_length", str(length), "--schedule.global_batch_size", str(batch)]
    fields += ["--schedule.micro_batch_size", "1", "--schedule.warmup_steps", "10"]
    config = load_config(preset="vlm_1b", overrides=[*SOURCES, *fields, *overrides])
    shape = config.segments[0].shape
    return config, [Stretch("long", shape, 100, share, None, () if share else ("vision", "projector"))]


def test_sizes_that_leave_each_rank_enough_of_a_row() -> None:
    def sizes(length: int, gpus: int) -> list[int]:
        return context_sizes(long_run(length)[1], gpus)

    assert sizes(2048, 64) == sizes(8191, 64) == [1]
    assert sizes(8192, 64) == [1, 2]
    assert sizes(131072, 64) == [1, 2, 4, 8, 16, 32]
    assert sizes(131072, 12) == [1, 2, 4]


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_rows_too_long_for_a_rank_are_shared(share: float) -> None:
    config, stretches = long_run(131072, share=share)
    found = search(config, H100, 16, stretches, 50277, keep=8)
    assert found.best[0].layout.context > 1
    for plan in found.best:
        assert not [line for line in problems(plan.config, 16) if not line.startswith("data.")], str(plan.layout)
        assert plan.fits
        assert plan.config.parallel.context_parallel_size == plan.layout.context
        assert plan.gpus == plan.config.parallel.model_ranks * plan.layout.data


def test_without_sharing_its_layouts_are_slower() -> None:
    """1 B parameters, rows of 131,072 on 8 GPUs: alone a rank does not have one, even recomputing everything."""
    config, stretches = long_run(131072, "--parallel.recompute", "full", batch=8)
    assert not estimate(config, H100, 8, stretches, 50277).fits
    best = search(config, H100, 8, stretches, 50277, keep=200, visions=("tensor",)).best
    alone = min(plan.seconds for plan in best if plan.layout.context == 1)
    assert best[0].layout.context > 1
    assert best[0].seconds < alone


def test_only_rows_that_ranks_can_divide_are_tried() -> None:
    """9,218 positions are 2 x 4,609: no four pieces of one row, but of two. 9,216 are 72 blocks of FP8, so 36 on a rank."""
    config, stretches = long_run(9218)
    tried = [one.config for one in candidates(config, 8, 8, stretches, ("tensor",))]
    shared = {one.schedule.micro_batch_size for one in tried if one.parallel.context_parallel_size > 1}
    assert 2 in shared
    assert 1 not in shared
    config, stretches = long_run(9216, "--precision.fp8", "blockwise")
    tried = [
        one.config for one in candidates(config, 16, 8, stretches, ("tensor",)) if one.config.schedule.micro_batch_size == 1
    ]
    sizes = {(one.parallel.tensor_model_parallel_size, one.parallel.context_parallel_size) for one in tried}
    assert (2, 2) in sizes
    assert (8, 2) not in sizes, "16 ranks share a row with sequence parallelism, and 576 positions are 4.5 blocks"
    for one in tried:
        assert not [line for line in problems(one, 16) if "sequence_length" in line]


def test_a_remedy_for_a_long_row() -> None:
    """Not enough: recomputation, and no smaller micro-batch. In one node tensor parallelism is the other remedy."""
    config, stretches = long_run(131072)
    failed = estimate(config, H100, 16, stretches, 50277)
    assert not failed.fits
    found = [one for one in remedies(failed, stretches, 50277, most=9) if one.estimate.layout.context > 1]
    assert found
    for remedy in found:
        assert remedy.estimate.fits
        assert any(word.startswith("--parallel.context_parallel_size ") for word in remedy.overrides)
        assert not [line for line in problems(remedy.estimate.config, 16) if not line.startswith("data.")]
