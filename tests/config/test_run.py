"""Length of a run, borders of its stages, and the shapes that presets and defaults give."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from megatron_vlm.config.curriculum import CurriculumConfig, StageConfig
from megatron_vlm.config.data import DataConfig
from megatron_vlm.config.loading import load_config
from megatron_vlm.config.model import LanguageConfig, ModelConfig, ProjectorConfig, VisionConfig
from megatron_vlm.config.optimization import ScheduleConfig
from megatron_vlm.config.run import RunConfig


def run(*stages: StageConfig, batch: int = 4, length: int = 10, **schedule: int) -> RunConfig:
    return RunConfig(
        data=DataConfig(sequence_length=length),
        curriculum=CurriculumConfig(stages),
        schedule=ScheduleConfig(global_batch_size=batch, **schedule),  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(("tokens", "steps"), [(1, 1), (39, 1), (40, 1), (41, 2), (4000, 100)])
def test_tokens_are_rounded_up_to_whole_steps(tokens: int, steps: int) -> None:
    config = run(StageConfig(), train_tokens=tokens)
    assert config.segments[0].tokens_per_step == 40
    assert config.total_steps == steps
    assert config.stage_ends() == (steps,)


@pytest.mark.parametrize(
    ("stages", "ends"),
    [
        ((StageConfig(until=0.8), StageConfig()), (80, 100)),
        ((StageConfig(until=0.801), StageConfig()), (81, 100)),
        ((StageConfig(until=0.001), StageConfig(until=1.0)), (1, 100)),
        ((StageConfig(until_tokens=40), StageConfig()), (1, 100)),
        ((StageConfig(until_tokens=41), StageConfig(until=0.5), StageConfig()), (2, 50, 100)),
        ((StageConfig(until_tokens=10**9),), (100,)),
    ],
)
def test_borders_are_rounded_up_to_whole_steps(stages: tuple[StageConfig, ...], ends: tuple[int, ...]) -> None:
    assert run(*stages, train_steps=100).stage_ends() == ends


@example(total=100, part=290)
@example(total=100, part=70)
@given(total=st.integers(1, 10**6), part=st.integers(1, 999))
def test_a_share_that_is_a_whole_step_is_that_step(total: int, part: int) -> None:
    """0.29 * 100 is 28.999999999999996 and 0.07 * 100 is 7.000000000000001: neither may move a border."""
    (end, last) = run(StageConfig(until=part / 1000), StageConfig(), train_steps=total).stage_ends()
    assert end == -(-part * total // 1000)
    assert last == total


def test_stage_of_agrees_with_the_borders() -> None:
    config = run(StageConfig(until=0.3), StageConfig(until=0.6), StageConfig(), train_steps=10)
    assert [config.stage_of(step) for step in range(10)] == [0] * 3 + [1] * 3 + [2] * 4
    assert config.stage_of(10) == 2, "after the last step the run is still in its last stage"


@pytest.mark.parametrize(
    ("name", "layers", "heads", "hidden", "warmup", "lr", "batch", "ffn"),
    [
        ("vlm_79m", 8, 4, 512, 400, 3e-3, 512, 1536),
        ("vlm_1b", 24, 16, 2048, 5000, 1e-2, 256, 5632),
        ("vlm_7b", 32, 32, 4096, 5000, 2e-3, 2048, 11008),
    ],
)
def test_presets_have_the_papers_shapes(
    name: str, layers: int, heads: int, hidden: int, warmup: int, lr: float, batch: int, ffn: int
) -> None:
    """Table of arXiv 2503.07603; the widths of the feed-forward layers are those of the open_lm models of that size."""
    config = load_config(preset=name)
    language, schedule, vision = config.model.language, config.schedule, config.model.vision
    assert (language.num_layers, language.num_attention_heads, language.hidden_size) == (layers, heads, hidden)
    assert (schedule.warmup_steps, schedule.lr, schedule.global_batch_size) == (warmup, lr, batch)
    assert language.ffn_width == ffn == 256 * -(-(8 * hidden) // (3 * 256))
    assert (language.normalization, language.qk_layernorm, language.untie_embeddings) == ("layernorm_gain", True, True)
    assert config.data.sequence_length == 2048
    # SigLIP SO400M/14 at 384 px
    assert (vision.image_size, vision.patch_size, vision.num_layers, vision.hidden_size) == (384, 14, 27, 1152)
    assert config.model.image_tokens == 729 == 27 * 27
    assert (config.optimizer.adam_beta2, config.optimizer.clip_grad) == (0.95, 1.0)
    text, images = config.curriculum.stages
    assert (text.until, images.until) == (0.8, None)
    assert images.measure == "visual_tokens"
    assert "vision" in images.freeze


def test_images_enter_the_1b_run_after_four_fifths_of_its_tokens() -> None:
    config = load_config(preset="vlm_1b")
    border, end = config.stage_ends()
    assert end == -(-28_000_000_000 // (256 * 2048))
    assert abs(border / end - 0.8) < 1 / end
    assert (config.stage_of(border - 1), config.stage_of(border)) == (0, 1)


@pytest.mark.parametrize(("hidden", "width"), [(96, 256), (97, 512), (192, 512), (512, 1536)])
def test_swiglu_width_is_a_multiple_of_256(hidden: int, width: int) -> None:
    assert LanguageConfig(hidden_size=hidden).ffn_width == width
    assert LanguageConfig(hidden_size=hidden, ffn_hidden_size=7).ffn_width == 7
    assert LanguageConfig(hidden_size=hidden, activation="gelu").ffn_width == 4 * hidden


def test_tokens_of_a_picture() -> None:
    clip = VisionConfig(kind="clip", image_size=56, patch_size=14)
    assert (clip.grid, clip.patches, clip.prefix_tokens) == (4, 16, 1)
    assert VisionConfig(kind="dinov2", register_tokens=4).prefix_tokens == 5
    assert VisionConfig().prefix_tokens == 0
    # class and register tokens are the encoder's own: the language model sees patches only
    assert ModelConfig(vision=clip, projector=ProjectorConfig(pixel_shuffle=2)).image_tokens == 4
