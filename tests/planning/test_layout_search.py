"""The search finds what trying everything finds, only what can run, and in few simulations at any size."""

from __future__ import annotations

from dataclasses import replace

import pytest

from megatron_vlm.config.checks import problems
from megatron_vlm.config.loading import load_config
from megatron_vlm.config.run import RunConfig
from megatron_vlm.planning import layout_search
from megatron_vlm.planning.estimate import Estimate, estimate
from megatron_vlm.planning.hardware import HARDWARE
from megatron_vlm.planning.layout import VISION_PLACEMENTS
from megatron_vlm.planning.layout_search import candidates, search
from megatron_vlm.planning.remedies import remedies
from megatron_vlm.planning.run_stretches import Stretch

H100 = HARDWARE["h100"]
VOCABULARY = 50277
SOURCES = ["--data.sources", "{text: text, captions: captions}"]


def run_of(
    preset: str, *overrides: str, share: float = 0.15, frozen: tuple[str, ...] = ()
) -> tuple[RunConfig, list[Stretch]]:
    """A preset's configuration; its run is steps of text and as many with a share of pictures."""
    config = load_config(preset=preset, overrides=[*SOURCES, *overrides])
    shape = config.segments[0].shape
    text = Stretch("text", shape, 100, 0.0, 900.0, ("vision", "projector"))
    return config, [text, Stretch("images", shape, 100, share, 700.0, frozen)]


def laid(candidate: layout_search.Candidate, gpus: int, recompute: str) -> Estimate:
    parallel = replace(candidate.config.parallel, recompute=recompute)  # type: ignore[arg-type]
    config = replace(candidate.config, parallel=parallel)
    return estimate(config, H100, gpus, candidate.stretches, VOCABULARY, vision=candidate.vision)


@pytest.mark.slow
def test_finds_what_trying_everything_finds() -> None:
    config, stretches = run_of("vlm_1b", "--schedule.global_batch_size", "32", share=0.3)
    found = search(config, H100, 16, stretches, VOCABULARY, keep=5)
    everything = []
    for candidate in candidates(config, 16, 8, stretches, VISION_PLACEMENTS):
        plans = (laid(candidate, 16, recompute) for recompute in ("none", "selective", "full"))
        fitting = next((plan for plan in plans if plan.fits), None)
        if fitting is not None:
            everything.append(fitting.seconds)
    assert [plan.seconds for plan in found.best] == pytest.approx(sorted(everything)[:5])
    assert found.tried - found.too_large == len(everything) > 100


@pytest.mark.parametrize(("preset", "gpus"), [("vlm_1b", 64), ("vlm_7b", 256)])
def test_what_it_finds_runs_and_fits(preset: str, gpus: int) -> None:
    config, stretches = run_of(preset)
    found = search(config, H100, gpus, stretches, VOCABULARY, keep=20)
    assert len(found.best) == 20
    for plan in found.best:
        wrong = [line for line in problems(plan.config, gpus) if not line.startswith("data.")]
        assert not wrong, (str(plan.layout), wrong)
        assert plan.fits
        assert plan.gpus == plan.layout.tensor * plan.layout.pipeline * plan.layout.data == gpus


def test_sixteen_thousand_gpus_take_few_simulations(monkeypatch: pytest.MonkeyPatch) -> None:
    config, stretches = run_of("vlm_7b", "--schedule.global_batch_size", "16384")
    simulated = []
    monkeypatch.setattr(layout_search, "span", lambda times, count: simulated.append(1) or real(times, count))
    real = layout_search.least_span
    found = search(config, H100, 16384, stretches, VOCABULARY)
    assert found.tried > 500
    assert 0 < len(simulated) < found.tried / 4
    assert len(found.best) == 10


def test_a_large_encoder_goes_over_to_all_stages() -> None:
    """A pipeline whose first stage encodes as much as the others read is faster if all of them encode."""
    fields = [
        "--parallel.tensor_model_parallel_size", "2", "--parallel.pipeline_model_parallel_size", "8",
        "--parallel.sequence_parallel", "true", "--schedule.global_batch_size", "128",
    ]  # fmt: skip
    config, stretches = run_of("vlm_7b", *fields, share=0.9)
    seconds = {
        vision: estimate(config, H100, 64, stretches[1:], VOCABULARY, vision=vision).seconds for vision in VISION_PLACEMENTS
    }
    assert seconds["data_all_stages"] < 0.9 * min(seconds["tensor"], seconds["data_first_stage"])
    # without pictures they are the same
    plain = {estimate(config, H100, 64, stretches[:1], VOCABULARY, vision=vision).seconds for vision in VISION_PLACEMENTS}
    assert len(plain) == 1


def test_remedies_fit_and_run() -> None:
    fields = ["--parallel.tensor_model_parallel_size", "1", "--parallel.sequence_parallel", "false"]
    fields += ["--parallel.recompute", "none", "--schedule.micro_batch_size", "8"]
    config, stretches = run_of("vlm_7b", *fields)
    failed = estimate(config, H100, 8, stretches, VOCABULARY)
    assert not failed.fits
    found = remedies(failed, stretches, VOCABULARY)
    assert found
    for remedy in found:
        assert remedy.estimate.fits
        words = [word for override in remedy.overrides for word in override.split(" ")]
        again = load_config(preset="vlm_7b", overrides=[*SOURCES, *fields, *words])
        assert again.parallel == remedy.estimate.config.parallel
        assert not [line for line in problems(again, 8) if not line.startswith("data.")]


SIZES = ["--curriculum.stages", "[{name: text, until: 0.5, sources: {text: 1.0}, freeze: [vision, projector]}, "]
SIZES[1] += "{name: images, sources: {text: 0.8, captions: 0.2}, micro_batch_size: %d}]"


def staged(preset: str, own: int, *overrides: str) -> tuple[RunConfig, list[Stretch]]:
    """A run whose stage with pictures has micro-batches of a size of its own."""
    config = load_config(preset=preset, overrides=[*SOURCES, SIZES[0], SIZES[1] % own, *overrides])
    text, images = (segment.shape for segment in config.segments)
    return config, [
        Stretch("text", text, 100, 0.0, 900.0, ("vision", "projector")),
        Stretch("images", images, 100, 0.15, 700.0),
    ]


def test_stages_with_a_size_of_their_own_are_configured_as_they_are_planned() -> None:
    config, stretches = staged("vlm_1b", 2)
    found = search(config, H100, 8, stretches, VOCABULARY, keep=8)
    assert len({plan.config.schedule.micro_batch_size for plan in found.best}) > 1
    for plan in found.best:
        sizes = [stage.micro_batch_size for stage in plan.config.curriculum.stages]
        assert sizes == [None, plan.config.schedule.micro_batch_size]
        assert {part.stretch.shape.micro_batch_size for part in plan.stretches} == {plan.config.schedule.micro_batch_size}


def test_remedies_change_the_sizes_that_stages_have() -> None:
    fields = ["--parallel.tensor_model_parallel_size", "1", "--parallel.sequence_parallel", "false"]
    fields += ["--parallel.recompute", "none", "--schedule.micro_batch_size", "1"]
    config, stretches = staged("vlm_7b", 16, *fields)
    failed = estimate(config, H100, 8, stretches, VOCABULARY)
    assert not failed.fits
    found = remedies(failed, stretches, VOCABULARY)
    smaller = next(one for one in found if "micro_batch_size" in one.overrides[0])
    size = smaller.estimate.config.curriculum.stages[1].micro_batch_size
    assert smaller.overrides == (f"--curriculum.stages.1.micro_batch_size {size}",)
    assert [part.stretch.shape.micro_batch_size for part in smaller.estimate.stretches] == [1, size]


def test_layouts_that_the_trainer_refuses_are_not_shown() -> None:
    config, stretches = run_of("vlm_1b", "--performance.recompute_modules", "[mlp]", "--parallel.recompute", "selective")
    found = search(config, H100, 8, stretches, VOCABULARY, keep=5)
    assert {plan.config.parallel.recompute for plan in found.best} == {"selective"}
    config, stretches = run_of("vlm_1b", "--performance.tp_overlap", "true", "--parallel.layer_spec", "host")
    found = search(config, H100, 8, stretches, VOCABULARY)
    assert (found.best, found.tried, found.nearest) == ((), 0, None)
    assert any(line.startswith("performance.tp_overlap") for line in found.refused)


def test_nothing_fits() -> None:
    config, stretches = run_of("vlm_7b", "--model.language.num_layers", "512", "--schedule.global_batch_size", "8")
    found = search(config, H100, 8, stretches, VOCABULARY)
    assert not found.best
    assert found.nearest is not None
    assert not found.nearest.fits
    assert found.too_large == found.tried > 0
