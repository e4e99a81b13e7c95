"""What a plan should make its owner look at: repeats, sources that run out, shares that cannot be had."""

from __future__ import annotations

from collections.abc import Iterator

from megatron_vlm.config.run import RunConfig
from megatron_vlm.planning.curriculum_plan import CurriculumPlan, Exhausted


def refusals(config: RunConfig, plan: CurriculumPlan) -> Iterator[str]:
    """Why training would refuse this plan once it has read the datasets; each with what would work."""
    for index, (asked, most) in plan.unreachable.items():
        where = f"stage {config.curriculum.stages[index].name!r}"
        if most < asked:
            yield (
                f"{where}: {asked:.4g} of all positions cannot be pictures, since only part of these documents is; at most "
                f"{_floored(most)} can"
            )
        else:
            yield (
                f"{where}: with no source of text to fill the rest, {most:.4g} of all positions are pictures, not "
                f"{asked:.4g}; add a source without pictures, or count the weights in tokens"
            )


def warnings(config: RunConfig, plan: CurriculumPlan, repeats: float) -> Iterator[str]:
    """What would run and may not be meant. `repeats`: passes over a source up to which nothing is said."""
    for gone in plan.exhausted:
        yield _exhausted(config, plan, gone)
    limited = {gone.source for gone in plan.exhausted}
    for name, passes in plan.source_passes.items():
        if passes > repeats and name not in limited:
            yield (
                f"{name}: read {passes:.1f} times, more than {repeats:g}; give it less, give more documents, or bound it "
                f"with --curriculum.max_epochs.{name} {repeats:g}"
            )
    if config.data.long_documents != "split" and plan.source_passes:
        yield (
            f"data.long_documents is {config.data.long_documents}: what it leaves out of documents longer than a pack is "
            f"not known here, so each source may be read more often than this says"
        )
    used = {name for s in config.curriculum.stages for weights in (s.sources, s.sources_from) for name in weights}
    for name in config.data.sources:
        if name not in used:
            yield f"{name}: in data.sources, and no stage reads it"
    schedule = config.schedule
    if schedule.rampup_batch_start is not None and config.segments and schedule.rampup_packs > config.total_packs:
        last = config.segments[-1].shape.global_batch_size
        yield (
            f"the ramp of the batch takes {schedule.rampup_packs:,} packs and the run has {config.total_packs:,}: it ends "
            f"at a batch of {last}"
        )
    yield from _idle_modules(config, plan)


def _exhausted(config: RunConfig, plan: CurriculumPlan, gone: Exhausted) -> str:
    stage = config.curriculum.stages[config.stage_of(int(gone.step))].name
    later = {piece.shape.stage for piece in plan.pieces if piece.first_token >= gone.token}
    weights = [config.curriculum.weights(index, progress) for index in later for progress in (0.0, 1.0)]
    wanted = any(one.get(gone.source, 0.0) > 0 for one in weights)
    place = f"step {int(gone.step):,} of {plan.total_steps:,} (stage {stage!r})"
    at = f"{gone.source}: has had its {gone.passes:g} passes at {place}"
    if config.curriculum.when_exhausted == "repeat":
        return f"{at}; it is repeated then, {plan.source_passes[gone.source]:.1f} times in all"
    if plan.ends_early and gone is plan.exhausted[-1]:
        return f"{at}; the run ends there, with {_ended(plan):.1%} of its positions done"
    return f"{at}; the other sources take its share from there on" if wanted else f"{at}; nothing asks for it after that"


def _ended(plan: CurriculumPlan) -> float:
    last = plan.pieces[-1]
    return (last.first_token + last.tokens) / plan.total_tokens


def _idle_modules(config: RunConfig, plan: CurriculumPlan) -> Iterator[str]:
    """Stages that train what has nothing to learn in them, and pictures that pass through what was never trained."""
    trained, passing = False, "pictures pass through a projector that no stage has trained yet"
    for stage in plan.stages:
        freeze = set(config.curriculum.stages[stage.index].freeze)
        trained = trained or "projector" not in freeze
        if stage.visual_tokens and not trained:
            yield f"stage {stage.name!r}: {passing}; take it out of freeze"
        if stage.tokens and stage.visual_tokens == 0 and not {"vision", "projector"} <= freeze:
            yield f"stage {stage.name!r}: has no pictures; freeze: [vision, projector] spares their gradients"


def _floored(share: float) -> float:
    """Three digits, rounded down, so that the number given can be asked for."""
    return int(share * 1000) / 1000
