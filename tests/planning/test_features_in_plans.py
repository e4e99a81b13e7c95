"""Where a stage reads features, its plan has no encoder pass, no pixels, and the features' bytes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from megatron_vlm.config.loading import load_config
from megatron_vlm.planning.efficiency import Efficiency
from megatron_vlm.planning.estimate import estimate
from megatron_vlm.planning.hardware import HARDWARE
from megatron_vlm.planning.layout import Layout
from megatron_vlm.planning.memory import rank_memory
from megatron_vlm.planning.recomputation import recomputed_flops
from megatron_vlm.planning.run_stretches import Stretch
from megatron_vlm.planning.stage_work import pipeline_work

H100 = HARDWARE["h100"]
#: the encoder is frozen in one stage, which reads, and trained in the next, which does not
CONFIG = load_config(
    preset="vlm_1b",
    overrides=[
        "--data.sources",
        "{text: '', captions: ''}",
        "--data.features",
        "{captions: kept}",
        "--curriculum.stages",
        "[{name: kept, until: 0.5, sources: {text: 0.5, captions: 0.5}, freeze: [vision]}, "
        "{name: trained, sources: {text: 0.5, captions: 0.5}}]",
    ],
)
READS, ENCODES = (segment.shape for segment in CONFIG.segments)
PIXELS = replace(READS, features=0)
#: a picture of 384 pixels a side is 27 x 27 patches of 14 pixels and 1152 numbers, each a row
ROWS, NUMBERS = 729, 1152


def stretch(shape: Any, frozen: tuple[str, ...] = ("vision",)) -> Stretch:
    return Stretch("images", shape, 10, 0.5, 700.0, frozen)


def memory(shape: Any, vision: Any = "tensor", precision: str = "bf16", stage: int = 0) -> dict[str, float]:
    layout = Layout(8, pipeline=2, vision=vision, precision=precision)
    found = rank_memory(CONFIG, 50304, layout, shape, stage, 2, ("vision",))
    return found.items()


def test_only_the_stage_before_the_encoder_learns_reads() -> None:
    assert (READS.features, ENCODES.features) == (NUMBERS, 0)
    assert (READS.picture_bytes, ENCODES.picture_bytes) == (2 * NUMBERS * ROWS, 3 * 384 * 384)


def test_operations_are_those_without_the_encoder() -> None:
    """The frozen encoder's forward pass, counted by hand, is all that is gone."""
    read, encoded = (
        estimate(CONFIG, H100, 8, [stretch(shape)], 50277).stretches[0].model_flops for shape in (READS, PIXELS)
    )
    vision, pictures = CONFIG.model.vision, round(stretch(READS).pictures(READS.global_batch_size))
    hidden, width = NUMBERS, vision.ffn_width
    layer = 2 * ROWS * (4 * hidden * hidden + 2 * hidden * width) + 4 * ROWS * ROWS * hidden
    assert encoded - read == pictures * (2 * ROWS * 3 * 14 * 14 * hidden + vision.num_layers * layer)


def test_a_pass_has_the_projector_alone() -> None:
    """mlp2, trained: twice its products backward, of which the input's gradient is not wanted."""
    full = Efficiency(vision=1.0)
    layout = Layout(8)

    def passes(shape: Any) -> tuple[float, float]:
        work = pipeline_work(CONFIG, 50304, layout, shape, 3, (2048,), H100, full, ("vision",))
        return work.forward[0][0].encoder, work.backward[0][0].encoder

    hidden = CONFIG.model.language.hidden_size
    products = 2 * 3 * ROWS * (NUMBERS * hidden + hidden * hidden)
    forward, backward = passes(READS)
    assert forward == pytest.approx(products / H100.peak_of("bf16"))
    assert forward < 0.2 * passes(PIXELS)[0]
    assert backward == pytest.approx(passes(PIXELS)[1])


def test_a_batch_holds_features_in_place_of_pixels() -> None:
    """8 GPUs in pipelines of two stages, 256 packs in micro-batches of the shape's size, of two pictures each."""
    count = 256 // (READS.micro_batch_size * 4)
    read, pixels = memory(READS), memory(PIXELS)
    assert read["batches"] - pixels["batches"] == count * 2 * (2 * NUMBERS * ROWS - 3 * 384 * 384)
    # in bf16 the projector keeps them where they are: one layer's input less, two micro-batches of two pictures in flight
    assert pixels["encoder"] - read["encoder"] == 2 * 2 * ROWS * NUMBERS * 2
    # in fp32 it keeps a copy of its own
    assert memory(READS, precision="fp32")["encoder"] == memory(PIXELS, precision="fp32")["encoder"]
    assert read["weights"] == pixels["weights"], "the encoder is built all the same"
    assert memory(READS, stage=1) == memory(PIXELS, stage=1)


def test_spread_over_all_stages_a_step_s_features_are_put_together() -> None:
    count = 256 // (READS.micro_batch_size * 4)
    step = count * 2 * 2 * NUMBERS * ROWS
    for stage in (0, 1):
        read, pixels = (memory(shape, "data_all_stages", stage=stage) for shape in (READS, PIXELS))
        assert read["batches"] - pixels["batches"] == 2 * step - count * 2 * 3 * 384 * 384
        # of a step's pictures a rank of the two takes half
        assert pixels["encoder"] - read["encoder"] == step / 2


def test_a_run_is_faster_for_its_features() -> None:
    read, encoded = (estimate(CONFIG, H100, 8, [stretch(shape)], 50277) for shape in (READS, PIXELS))
    assert read.seconds < encoded.seconds
    assert read.stretches[0].time.work.matrices == encoded.stretches[0].time.work.matrices


def test_nothing_of_an_encoder_that_is_not_run_is_computed_again() -> None:
    """Whatever prefix froze it, and though its recomputation is asked for."""
    layout = Layout(8, recompute_vision=True)
    assert recomputed_flops(CONFIG.model, stretch(READS).batch(), layout, ("vision.",)) == 0
    assert recomputed_flops(CONFIG.model, stretch(ENCODES).batch(), layout, ()) > 0
