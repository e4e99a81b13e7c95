"""Which language layers stay in bf16 beside FP8, by megatron-core's own rule, and what that costs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from megatron.core.fp8_utils import is_first_last_bf16_layer

from megatron_vlm.config.checks import problems
from megatron_vlm.config.loading import load_config
from megatron_vlm.planning.edge_layers import ChunkLayers, chunk_layers
from megatron_vlm.planning.efficiency import Efficiency
from megatron_vlm.planning.hardware import HARDWARE
from megatron_vlm.planning.layout import Layout, layout_of
from megatron_vlm.planning.layout_search import candidates
from megatron_vlm.planning.memory import rank_memory
from megatron_vlm.planning.run_stretches import Stretch
from megatron_vlm.planning.stage_work import pipeline_work

H100 = HARDWARE["h100"]
SOURCES = ["--data.sources", "{text: text, captions: captions}", "--schedule.global_batch_size", "192"]
LAYERS = 12


def in_bf16(first: int, last: int) -> list[bool]:
    """Of each of the layers, as megatron-core has it."""
    config: Any = SimpleNamespace(
        first_last_layers_bf16=first > 0 or last > 0,
        num_layers_at_start_in_bf16=first,
        num_layers_at_end_in_bf16=last,
        num_layers=LAYERS,
    )
    return [is_first_last_bf16_layer(config, layer) for layer in range(LAYERS)]


@pytest.mark.parametrize(("first", "last"), [(0, 0), (1, 1), (2, 0), (0, 3), (3, 2), (6, 6)])
@pytest.mark.parametrize(
    ("layout", "chunks"),
    [
        (Layout(8), [[range(12)]]),
        (Layout(8, pipeline=2), [[range(6)], [range(6, 12)]]),
        (
            Layout(8, pipeline=2, virtual=3),
            [[range(2), range(4, 6), range(8, 10)], [range(2, 4), range(6, 8), range(10, 12)]],
        ),
        (Layout(8, pipeline=4, first_layers=1, last_layers=3), [[range(1)], [range(1, 5)], [range(5, 9)], [range(9, 12)]]),
    ],
    ids=["one stage", "pp2", "pp2 x vp3", "1 .. 3 layers"],
)
def test_the_layers_are_megatron_core_s(layout: Layout, chunks: list[list[range]], first: int, last: int) -> None:
    layout = Layout(**{**vars(layout), "precision": "fp8", "first_in_bf16": first, "last_in_bf16": last})
    marks = in_bf16(first, last)
    for stage, found in zip(chunks, chunk_layers(layout, LAYERS), strict=True):
        for numbers, layers in zip(stage, found, strict=True):
            assert layers.count == len(numbers)
            for many in range(len(numbers) + 1):
                part, rest = layers.first(many), layers.without_first(many)
                assert part.in_bf16 == sum(marks[number] for number in numbers[:many])
                assert (rest.count, rest.in_bf16) == (len(numbers) - many, sum(marks[number] for number in numbers[many:]))


def test_without_fp8_there_is_nothing_to_tell_apart() -> None:
    assert chunk_layers(Layout(8, precision="bf16", first_in_bf16=2), 12) == [[ChunkLayers(12)]]


def test_the_search_goes_no_deeper_than_they_allow() -> None:
    """24 layers with 8 of them at the start in bf16: stages of 8 at least, so 3 of them at most."""
    fields = ["--precision.fp8", "current", "--precision.first_layers_in_bf16", "8"]
    config = load_config(preset="vlm_1b", overrides=[*SOURCES, *fields])
    text = Stretch("text", config.segments[0].shape, 1, frozen=("vision", "projector"))
    tried = [candidate.config for candidate in candidates(config, 24, 8, [text], ("tensor",))]
    assert {one.parallel.pipeline_model_parallel_size for one in tried} == {1, 2, 3}
    assert not [line for one in tried for line in problems(one, 24) if "bf16" in line]


def laid(*overrides: str) -> tuple[Any, Layout]:
    config = load_config(preset="vlm_1b", overrides=["--precision.fp8", "current", *overrides])
    return config, layout_of(config, 8)


EDGES = ("--precision.first_layers_in_bf16", "1", "--precision.last_layers_in_bf16", "2")
BLOCK = ("--parallel.recompute", "full", "--performance.recompute_method", "block", "--performance.recompute_layers", "3")


@pytest.mark.parametrize("recompute", [(), BLOCK], ids=["kept", "three layers again"])
def test_edge_layers_take_the_time_of_bf16(recompute: tuple[str, ...]) -> None:
    """In 24 layers: passes of 21 in FP8 and 3 in bf16; of three that are computed again, one is in bf16."""

    def matrices(config: Any, layout: Layout) -> tuple[float, float]:
        work = pipeline_work(config, 50304, layout, config.segments[0].shape, 0, (2048,), H100, Efficiency())
        return work.forward[0][0].matrices, work.backward[0][0].matrices

    eight, mixed = matrices(*laid(*recompute)), matrices(*laid(*recompute, *EDGES))
    config = load_config(preset="vlm_1b", overrides=list(recompute))
    half = matrices(config, layout_of(config, 8))
    assert half[0] > eight[0]
    assert mixed[0] == pytest.approx((21 * eight[0] + 3 * half[0]) / 24)
    # backward costs twice a layer's forward pass; what is computed again once
    again = (2, 1) if recompute else (0, 0)
    assert mixed[1] == pytest.approx(((21 * 2 + again[0]) * eight[0] + (3 * 2 + again[1]) * half[0]) / 24)


def test_edge_layers_keep_what_bf16_keeps_and_no_fp8_copies() -> None:
    """Of a stage of 12 layers with one in bf16. An eighth-bit layer keeps a byte less of qkv's, fc1's and fc2's inputs, and
    a byte more of the projection's; its matrices have two copies of a byte."""
    pipeline = ("--parallel.pipeline_model_parallel_size", "2")

    def memory(config: Any, layout: Layout, stage: int) -> dict[str, float]:
        return rank_memory(config, 50304, layout, config.segments[0].shape, stage, 0).items()

    (config, eight), (_, mixed) = laid(*pipeline), laid(*pipeline, *EDGES)
    language, shape = config.model.language, config.segments[0].shape
    matrices = 4 * language.hidden_size**2 + 3 * language.hidden_size * language.ffn_width
    a_position = 2 * language.hidden_size + language.ffn_width - language.hidden_size
    positions = shape.micro_batch_size * shape.sequence_length
    for stage, edges, in_flight in ((0, 1, 2), (1, 2, 1)):
        before, after = memory(config, eight, stage), memory(config, mixed, stage)
        assert before["weights"] - after["weights"] == edges * 2 * matrices
        assert after["activations"] - before["activations"] == edges * in_flight * positions * a_position
        assert {name for name in before if before[name] != after[name]} == {"weights", "activations"}
