"""A plan as text: tables, strips of blocks over the run, and what of it came true."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from megatron_vlm.config.run import RunConfig
from megatron_vlm.config.steps import StepShape
from megatron_vlm.planning.curriculum_achieved import Difference
from megatron_vlm.planning.curriculum_plan import CurriculumPlan, StagePlan
from megatron_vlm.training.metrics import human

_BLOCKS = " ▁▂▃▄▅▆▇█"
_WIDTH = 64  # columns of a strip
_MODULES = ("language", "projector", "vision")


def columns(rows: Sequence[Sequence[str]], right: frozenset[int] = frozenset()) -> Iterator[str]:
    """Rows as lines, two spaces between columns; those in `right` are set to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        cells = [cell.rjust(w) if i in right else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))]
        yield "  ".join(cells).rstrip()


def describe_plan(config: RunConfig, plan: CurriculumPlan) -> Iterator[str]:
    """The lines of the plan: stages, sources, the run at a glance."""
    yield f"{plan.total_steps:,} steps, {human(plan.total_tokens)} positions in {config.total_packs:,} packs"
    yield ""
    yield from _stages(config, plan)
    yield ""
    yield from _sources(plan)
    yield ""
    yield from _strips(plan)
    entry = plan.pictures_enter
    if entry is not None:
        share = entry.first_token / plan.total_tokens
        yield ""
        step = int(entry.first_step)
        yield f"Pictures enter at step {step:,}, {human(entry.first_token)} positions ({share:.1%}) into the run."


def _stages(config: RunConfig, plan: CurriculumPlan) -> Iterator[str]:
    weighted = any(stage.loss_weights for stage in config.curriculum.stages)
    head = ["stage", "steps", "positions", "", "batch x length", "learning rate", "trains", "a picture"]
    rows = [head + (["loss weights"] if weighted else [])]
    for stage in plan.stages:
        chosen = config.curriculum.stages[stage.index]
        trains = [module for module in _MODULES if module not in chosen.freeze]
        width = config.tokens_before(stage.end_step) - stage.first_token
        row = [
            stage.name,
            f"{stage.first_step:,} to {stage.end_step:,}",
            human(width),
            f"{width / max(1, plan.total_tokens):.1%}",
            _sizes(stage.shapes),
            f"{_rates(stage.lr)} ({chosen.lr_policy})",
            ", ".join(trains) or "nothing",
            _picture(stage),
        ]
        if weighted:
            row.append(", ".join(f"{name} {weight:g}" for name, weight in chosen.loss_weights.items()) or "1")
        rows.append(row)
    yield from columns(rows, frozenset({2, 3}))


def _rates(lr: tuple[float, float, float]) -> str:
    first, peak, last = (f"{rate:.2e}" for rate in lr)
    return " > ".join([first, *([peak] if peak not in (first, last) else []), *([last] if last != first else [])])


def _sizes(shapes: Sequence[StepShape]) -> str:
    batches = list(dict.fromkeys(shape.global_batch_size for shape in shapes))
    lengths = list(dict.fromkeys(shape.sequence_length for shape in shapes))
    if not shapes:
        return "-"
    batch = str(batches[0]) if len(batches) == 1 else f"{batches[0]} to {batches[-1]}"
    return f"{batch} x {lengths[0]:,}"


def _picture(stage: StagePlan) -> str:
    if not stage.shapes or stage.visual_tokens == 0:
        return "-"
    shape = stage.shapes[0]
    pooled = f", pooled {shape.image_pool} x {shape.image_pool}" if shape.image_pool > 1 else ""
    if shape.picture.native:
        return f"own aspect, up to {shape.image_size} x {shape.image_size} px, {shape.image_tokens} tokens{pooled}"
    return f"{shape.image_size} px, {shape.image_tokens} tokens{pooled}"


def _sources(plan: CurriculumPlan) -> Iterator[str]:
    rows = [["positions of", *(stage.name for stage in plan.stages), "the run"]]
    done = sum(stage.tokens for stage in plan.stages)
    for name in plan.sources:
        row = [name]
        for stage in plan.stages:
            tokens = stage.source_tokens.get(name, 0.0)
            row.append(_amount(tokens, stage.tokens, stage.source_passes.get(name)))
        total = sum(stage.source_tokens.get(name, 0.0) for stage in plan.stages)
        rows.append([*row, _amount(total, done, plan.source_passes.get(name))])
    row, total_visual = ["pictures"], 0.0
    unknown = False
    for stage in plan.stages:
        row.append("?" if stage.visual_tokens is None else _amount(stage.visual_tokens, stage.tokens, None))
        unknown = unknown or stage.visual_tokens is None
        total_visual += stage.visual_tokens or 0.0
    rows.append([*row, "?" if unknown else _amount(total_visual, done, None)])
    yield from columns(rows)


def _amount(tokens: float, of: float, passes: float | None) -> str:
    if not tokens:
        return "-"
    times = "" if passes is None else f", {passes:.2g} passes" if passes < 100 else f", {passes:,.0f} passes"
    return f"{human(tokens)} {tokens / max(1.0, of):.1%}{times}"


def _strips(plan: CurriculumPlan) -> Iterator[str]:
    """One line a source (full block: all of a pack), then rate and batch against their highest."""
    places = [plan.total_tokens * (column + 0.5) / _WIDTH for column in range(_WIDTH)]
    pieces = [next((p for p in plan.pieces if p.first_token <= at < p.first_token + p.tokens), None) for at in places]
    strips = {name: [piece.shares.sources.get(name, 0.0) if piece else 0.0 for piece in pieces] for name in plan.sources}
    strips["(pictures)"] = [(piece.shares.visual or 0.0) if piece else 0.0 for piece in pieces]
    highest = max((rate for _, rate in plan.rates), default=0.0)
    strips["(learning rate)"] = [_rate_at(plan, piece.first_step) / highest if piece else 0.0 for piece in pieces]
    sizes = [piece.shape.global_batch_size * piece.shape.sequence_length if piece else 0 for piece in pieces]
    if len(set(sizes)) > 1:
        strips["(positions a step)"] = [size / max(sizes) for size in sizes]
    wide = max(len(name) for name in strips)
    yield f"{'':{wide}}  0{human(plan.total_tokens):>{_WIDTH - 1}}"
    for name, values in strips.items():
        yield f"{name:{wide}}  {''.join(_block(value) for value in values)}".rstrip()


def _block(value: float) -> str:
    """A share that is there at all is seen."""
    return _BLOCKS[max(int(value > 1e-9), round(min(1.0, value) * 8))]


def _rate_at(plan: CurriculumPlan, step: float) -> float:
    return min(plan.rates, key=lambda point: abs(point[0] - step))[1]


def describe_differences(found: Sequence[Difference], steps: int, total: int) -> Iterator[str]:
    """The lines of a run beside its plan."""
    yield f"Planned and achieved, {steps:,} of {total:,} steps done (shares of the positions filled in each stage so far)"
    rows = [["stage", "source", "planned", "achieved", "difference", ""]]
    for one in found:
        planned = "?" if one.planned is None else f"{one.planned:.3%}"
        points = "?" if one.planned is None else f"{100 * (one.achieved - one.planned):+.3f} points"
        tokens = "" if one.tokens is None else f"{one.tokens:+,.0f} of {one.filled:,.0f} positions"
        rows.append([one.stage, one.source or "(pictures)", planned, f"{one.achieved:.3%}", points, tokens])
    yield from columns(rows, frozenset({2, 3, 4}))
