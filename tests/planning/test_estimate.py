"""An estimate's parts add up, and move as they must."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from megatron_vlm.config.loading import load_config
from megatron_vlm.config.picture_rows import PictureRows
from megatron_vlm.errors import ConfigError
from megatron_vlm.planning.communication import encoder_layer_bytes, language_layer_bytes, links, picture_row_bytes
from megatron_vlm.planning.curriculum_plan import plan_curriculum
from megatron_vlm.planning.efficiency import Efficiency
from megatron_vlm.planning.estimate import Estimate, estimate
from megatron_vlm.planning.flops import step_flops
from megatron_vlm.planning.hardware import HARDWARE, hardware
from megatron_vlm.planning.layout import Layout
from megatron_vlm.planning.run_stretches import Stretch, run_stretches
from megatron_vlm.planning.source_shares import SourceShape

H100 = HARDWARE["h100"]
CONFIG = load_config(preset="vlm_1b")
SHAPE = CONFIG.segments[0].shape
IMAGES = Stretch("images", SHAPE, 10, 0.5, 700.0, ("vision",))


def plan(stretch: Stretch = IMAGES, gpus: int = 16, *overrides: str, **options: Any) -> Estimate:
    config = load_config(preset="vlm_1b", overrides=list(overrides))
    return estimate(config, H100, gpus, [stretch], 50277, **options)


def test_parts_sum_to_the_step_and_the_run() -> None:
    found = plan()
    [part] = found.stretches
    assert sum(part.time.parts().values()) == pytest.approx(part.time.seconds)
    assert found.seconds == pytest.approx(10 * part.time.seconds)
    assert found.gpu_hours == pytest.approx(found.seconds * 16 / 3600)
    assert found.cost(2.0) == pytest.approx(2 * found.gpu_hours)
    assert found.tokens_per_second == pytest.approx(256 * 2048 / part.time.seconds)
    assert part.model_flops == step_flops(CONFIG.model, 50304, IMAGES.batch(), ("vision",))
    assert len(found.memory_by_rank) == found.layout.tensor * found.layout.pipeline


def test_nothing_is_faster_than_its_peak() -> None:
    full = Efficiency(matrix=1.0, attention=1.0, vision=1.0, memory=1.0, kernel_gap=0.0, step_overhead=0.0)
    found = plan(efficiency=full)
    assert 0.5 < found.model_flops_utilisation < 1.0


@pytest.mark.parametrize(
    ("change", "faster"),
    [
        (replace(IMAGES, frozen=("vision", "projector")), True),
        (replace(IMAGES, frozen=()), False),
        (replace(IMAGES, visual_share=0.2), True),
        (replace(IMAGES, document_length=None), False),
    ],
)
def test_what_makes_a_step_longer(change: Stretch, faster: bool) -> None:
    assert (plan(change).seconds < plan().seconds) is faster


def test_memory_moves_with_the_layout() -> None:
    small = plan(IMAGES, 16).most_memory
    whole = plan(IMAGES, 16, "--parallel.use_distributed_optimizer", "false", "--parallel.overlap_param_gather", "false")
    assert whole.most_memory.optimizer == pytest.approx(16 * small.optimizer)
    full = plan(IMAGES, 16, "--parallel.recompute", "full")
    assert full.most_memory.activations < 0.2 * small.activations
    assert full.stretches[0].recomputed_flops > 0.2 * full.stretches[0].model_flops
    assert full.seconds > plan().seconds
    learning = plan(replace(IMAGES, frozen=())).most_memory
    assert learning.encoder > 5 * small.encoder
    assert learning.gradients > small.gradients
    eight = plan(IMAGES, 16, precision="fp8")
    assert eight.seconds < plan().seconds
    # the configuration's own word is enough
    assert plan(IMAGES, 16, "--precision.fp8", "current").seconds == eight.seconds


def test_what_is_computed_again_by_choice_lies_between_nothing_and_everything() -> None:
    plain, full = plan(IMAGES, 16), plan(IMAGES, 16, "--parallel.recompute", "full")
    modules = plan(IMAGES, 16, "--parallel.recompute", "selective", "--performance.recompute_modules", "[mlp]")
    block = plan(
        IMAGES,
        16,
        "--parallel.recompute",
        "full",
        "--performance.recompute_method",
        "block",
        "--performance.recompute_layers",
        "6",
    )
    for between in (modules, block):
        assert plain.seconds < between.seconds < full.seconds
        assert full.most_memory.activations < between.most_memory.activations < plain.most_memory.activations
    learning = replace(IMAGES, frozen=())
    again, kept = plan(learning, 16, "--performance.recompute_vision", "true"), plan(learning, 16)
    assert again.most_memory.encoder < 0.3 * kept.most_memory.encoder
    assert again.seconds > kept.seconds
    assert "recompute full (block 6)" in str(block.layout)


def test_low_rank_updates_spare_what_training_the_model_takes() -> None:
    """Gradients, moments and copies are theirs alone; the frozen weights are there all the same."""
    text = replace(IMAGES, visual_share=0.0, frozen=("vision", "projector"))
    whole, low = plan(text), plan(text, 16, "--model.lora.rank", "16")
    hidden, width, layers = 2048, 5632, 24
    updates = 16 * layers * (8 * hidden + 3 * width)
    assert low.most_memory.gradients == 4 * updates
    assert low.most_memory.optimizer == 12 * updates / 16
    assert low.most_memory.weights - whole.most_memory.weights == pytest.approx(2 * updates)
    assert low.most_memory.total < whole.most_memory.total
    [ours], [theirs] = low.stretches, whole.stretches
    assert ours.time.work.matrices < 0.75 * theirs.time.work.matrices
    assert ours.time.work.head < theirs.time.work.head
    assert ours.time.optimizer < 0.1 * theirs.time.optimizer
    assert 2 * theirs.model_flops / 3 < ours.model_flops < 0.75 * theirs.model_flops
    # frozen with all else, nothing learns
    assert plan(replace(text, frozen=("language", "vision", "projector")), 16, "--model.lora.rank", "16").stretches[
        0
    ].time.optimizer == pytest.approx(0.0)


def test_low_rank_updates_under_tensor_parallelism() -> None:
    """Halves of a layer's work; what enters B is exchanged besides, and without sequence parallelism A of qkv reads all."""
    fields = ["--parallel.tensor_model_parallel_size", "2", "--parallel.sequence_parallel"]
    split, shared = (plan(IMAGES, 16, *fields, word, "--model.lora.rank", "16") for word in ("true", "false"))
    plain = plan(IMAGES, 16, *fields, "true")
    work = split.stretches[0].time.work
    assert work.exchange > plain.stretches[0].time.work.exchange
    assert work.matrices < shared.stretches[0].time.work.matrices
    again = plan(IMAGES, 16, *fields, "true", "--model.lora.rank", "16", "--parallel.recompute", "full")
    assert again.stretches[0].recomputed_flops > split.stretches[0].model_flops / 4


def test_overlap_hides_the_reduction_of_gradients() -> None:
    slow = plan(IMAGES, 256, "--parallel.overlap_grad_reduce", "false", "--parallel.overlap_param_gather", "false")
    fast = plan(IMAGES, 256)
    assert fast.stretches[0].time.data_exchange < slow.stretches[0].time.data_exchange


def test_bytes_of_tensor_parallel_exchange() -> None:
    """Four all-gathers or reduce-scatters of [positions, hidden] forward: (t - 1) / t of each through a rank."""
    layout = Layout(8, tensor=4)
    forward, backward = language_layer_bytes(CONFIG.model, layout, 1000, 2)
    assert forward == backward == 4 * 1000 * 2048 * 2 * 3 / 4
    assert encoder_layer_bytes(CONFIG.model.vision, layout, 100, 2) == 4 * 100 * 1152 * 2 * 3 / 4
    apart = replace(layout, vision="data_first_stage")
    assert encoder_layer_bytes(CONFIG.model.vision, apart, 100, 2) == 0
    assert picture_row_bytes(CONFIG.model, apart, 100, 2) == 100 * 2048 * 2 * 3 / 4
    assert picture_row_bytes(CONFIG.model, layout, 100, 2) == 0


def test_links_of_groups_that_leave_the_node() -> None:
    exact = Efficiency(node=1.0, network=1.0)
    assert links(Layout(8, tensor=8), H100, exact).tensor == H100.node_bandwidth
    assert links(Layout(8), H100, exact).data == H100.node_bandwidth
    # eight members a node send through eight ports, one member through one
    assert links(Layout(64), H100, exact).data == 8 * H100.network_bandwidth
    assert links(Layout(64, tensor=8), H100, exact).data == H100.network_bandwidth


def test_stretches_of_a_curriculum() -> None:
    config = load_config(preset="vlm_1b", overrides=["--data.sources", "{text: '', captions: ''}"])
    shapes = {PictureRows(729): {"text": SourceShape(1000.0, 0.0), "captions": SourceShape(766.0, 729 / 766)}}
    text, images = run_stretches(config, plan_curriculum(config, shapes, lambda step: 0.0), shapes)
    assert (text.name, images.name) == ("text", "images")
    assert text.steps + images.steps == pytest.approx(config.total_steps)
    assert text.visual_share == 0
    assert images.visual_share == pytest.approx(0.15)
    assert images.pictures(256) == pytest.approx(0.15 * 256 * 2048 / 729)
    assert images.document_length is not None
    assert 766 < images.document_length < 1000
    assert sum(images.lengths(2)) == 2 * 2048
    assert images.frozen == ("vision",)


def test_refusals() -> None:
    with pytest.raises(ConfigError, match="described are a100, h100"):
        hardware("v100")
    with pytest.raises(ConfigError, match="a100 multiplies in bf16, fp32"):
        estimate(CONFIG, HARDWARE["a100"], 8, [IMAGES], 50277, precision="fp8")
    config = load_config(preset="vlm_1b", overrides=["--parallel.tensor_model_parallel_size", "4"])
    with pytest.raises(ConfigError, match=r"--gpus 6: tensor x pipeline = 4 does not divide it; nearest: 4"):
        estimate(config, H100, 6, [IMAGES], 50277)
