"""The plan of a run before it runs: tokens by stage and source, repeats, rates and sizes, from the configuration alone.

The plan counts as if every position of every pack were filled; padding, usually well below a per cent, is not foreseen.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from megatron_vlm.config.picture_rows import PictureRows
from megatron_vlm.config.run import RunConfig
from megatron_vlm.config.steps import StepShape
from megatron_vlm.planning.source_shares import Shares, SourceShape, shares_of

#: the run is cut into about this many pieces of constant shares
_PIECES = 600

#: tokens of a picture -> source -> its shape; sources that could not be read are missing
Shapes = Mapping[PictureRows, Mapping[str, SourceShape]]


@dataclass(frozen=True, slots=True)
class Piece:
    """Positions `first_token .. first_token + tokens` of the run, taken to have one mixture. A whole number of steps, save
    where a source ran out in between: `first_step` and `steps` then have a fraction."""

    first_step: float
    steps: float
    first_token: float
    tokens: float
    shape: StepShape
    shares: Shares


@dataclass
class StagePlan:
    """A stage as planned. Token counts are positions; `visual_tokens` is None where it cannot be known."""

    index: int
    name: str
    first_step: int
    end_step: int
    first_token: int
    tokens: float = 0.0
    source_tokens: dict[str, float] = field(default_factory=dict)
    #: passes over each source's documents in this stage, for sources that were read
    source_passes: dict[str, float] = field(default_factory=dict)
    visual_tokens: float | None = 0.0
    #: batch, length and picture of its steps, in order
    shapes: list[StepShape] = field(default_factory=list)
    #: rate at its first step, the highest, at its last
    lr: tuple[float, float, float] = (0.0, 0.0, 0.0)
    #: False: the weights were taken for shares of positions, as datasets are missing
    known: bool = True


@dataclass(frozen=True, slots=True)
class Exhausted:
    """A source that has had its `max_epochs` before `step` (fraction: within a step), `token` positions into the run."""

    source: str
    passes: float
    step: float
    token: float


@dataclass
class CurriculumPlan:
    """See the module. `pieces` are consecutive from the start of the run; they end early where a source stops it."""

    total_steps: int
    total_tokens: int
    stages: list[StagePlan] = field(default_factory=list)
    pieces: list[Piece] = field(default_factory=list)
    #: source -> passes over its documents in the whole run, for sources that were read
    source_passes: dict[str, float] = field(default_factory=dict)
    exhausted: list[Exhausted] = field(default_factory=list)
    #: stages (by index) whose share of pictures cannot be had -> asked for, the nearest that can
    unreachable: dict[int, tuple[float, float]] = field(default_factory=dict)
    #: step and rate, for a curve
    rates: list[tuple[int, float]] = field(default_factory=list)

    @property
    def ends_early(self) -> bool:
        """Whether the run stops before its last step, as a source has had its passes."""
        return bool(self.pieces) and self.pieces[-1].first_token + self.pieces[-1].tokens < self.total_tokens - 0.5

    @property
    def pictures_enter(self) -> Piece | None:
        """The first piece with pictures; None if there is none, or none that is known."""
        return next((piece for piece in self.pieces if piece.shares.visual), None)

    @property
    def sources(self) -> list[str]:
        """Every source that the plan reads, in the order in which stages name them."""
        return list(dict.fromkeys(name for stage in self.stages for name in stage.source_tokens))

    def planned_before(self, token: float) -> tuple[dict[str, float], float | None]:
        """Positions by source, and of pictures (None: not known), of the first `token` positions of the run."""
        by_source: dict[str, float] = dict.fromkeys(self.sources, 0.0)
        visual: float | None = 0.0
        last = bisect_right(self.pieces, token, key=lambda piece: piece.first_token)
        for piece in self.pieces[:last]:
            part = min(piece.tokens, token - piece.first_token)
            for name, share in piece.shares.sources.items():
                by_source[name] += share * part
            known = piece.shares.visual
            visual = None if visual is None or known is None else visual + known * part
        return by_source, visual


def plan_curriculum(config: RunConfig, shapes: Shapes, rate: Callable[[int], float]) -> CurriculumPlan:
    """The plan of a configuration that `config.checks.plan_problems` has nothing against.

    Args:
        shapes: of the sources that could be read, for every way in which the run shows pictures.
        rate: step -> learning rate.
    """
    plan = CurriculumPlan(config.total_steps, config.total_tokens)
    start = 0
    for index, end in enumerate(config.stage_ends()):
        name, steps = config.curriculum.stages[index].name, range(start, end)
        plan.stages.append(StagePlan(index, name, start, end, config.tokens_before(start)))
        if steps:
            sampled = sorted({*steps[:: max(1, len(steps) // _PIECES)], *_turns(config, index, steps), steps[-1]})
            rates = [(step, rate(step)) for step in sampled]
            plan.stages[-1].lr = (rates[0][1], max(value for _, value in rates), rates[-1][1])
            plan.rates += rates
            _check_reachable(config, shapes, plan, plan.stages[-1])
        start = end
    _fill(config, shapes, plan)
    return plan


def _check_reachable(config: RunConfig, shapes: Shapes, plan: CurriculumPlan, stage: StagePlan) -> None:
    """Note a stage whose pictures are too many, or too few, at one end of its ramp; in between they are less so."""
    curriculum = config.curriculum
    known = shapes.get(config.shape_of(stage.first_step).picture, {})
    for progress in (0.0, 1.0):
        weights = curriculum.weights(stage.index, progress)
        most = shares_of(weights, curriculum.stages[stage.index].measure, known).most_visual
        if most is not None:
            asked = sum(weight for name, weight in weights.items() if weight > 0 and known[name].visual_share > 0)
            plan.unreachable[stage.index] = (asked, most)


def _turns(config: RunConfig, index: int, steps: range) -> list[int]:
    """Steps of a stage at which a warm-up ends, where the highest rate may be."""
    warmed = (config.schedule.warmup_steps, steps.start + config.curriculum.stages[index].rewarm_steps)
    return [step for end in warmed for step in (end - 1, end) if step in steps]


def _fill(config: RunConfig, shapes: Shapes, plan: CurriculumPlan) -> None:
    """Walk the run piece by piece, counting what each source gives, until its end or that of a source which stops it."""
    per_piece = max(1, plan.total_steps // _PIECES)
    for segment in config.segments:
        for step in range(segment.first_step, segment.end_step, per_piece):
            steps = min(per_piece, segment.end_step - step)
            first_token, width = config.tokens_before(step), steps * segment.tokens_per_step
            done = 0.0
            while done < width - 1e-6:
                taken = _take(
                    config, shapes, plan, segment.shape, first_token + done, width - done, step + done / width * steps
                )
                if not taken:
                    return
                done += taken


def _take(
    config: RunConfig, shapes: Shapes, plan: CurriculumPlan, shape: StepShape, token: float, width: float, step: float
) -> float:
    """Add one piece of at most `width` positions, shorter where a source has its last pass; its width, 0 at the end."""
    curriculum, stage = config.curriculum, plan.stages[shape.stage]
    choice, limits = curriculum.stages[shape.stage], curriculum.max_epochs
    ends = config.tokens_before(stage.end_step)
    progress = (token + width / 2 - stage.first_token) / max(1, ends - stage.first_token)
    weights = curriculum.weights(shape.stage, progress)
    over = {gone.source for gone in plan.exhausted} if curriculum.when_exhausted != "repeat" else set()
    if over & {name for name, weight in weights.items() if weight > 0}:
        weights = _without(weights, over)
        if curriculum.when_exhausted == "stop" or not any(weight > 0 for weight in weights.values()):
            return 0.0
    known = shapes.get(shape.picture, {})
    shares = shares_of(weights, choice.measure, known)
    per_token = {
        name: share / size
        for name, share in shares.sources.items()
        if share > 0 and name in known and (size := known[name].positions)
    }
    gone = {exhausted.source for exhausted in plan.exhausted}
    until = {
        name: max(0.0, limits[name] - plan.source_passes.get(name, 0.0)) / passes
        for name, passes in per_token.items()
        if name in limits and name not in gone and passes > 0
    }
    nearest = min(until, key=lambda name: until[name], default=None)
    tokens = width
    if nearest is not None and until[nearest] <= width:
        tokens = max(until[nearest], 1e-3)
        part = step + tokens / (shape.global_batch_size * shape.sequence_length)
        plan.exhausted.append(Exhausted(nearest, limits[nearest], part, token + tokens))
    steps = tokens / (shape.global_batch_size * shape.sequence_length)
    plan.pieces.append(Piece(step, steps, token, tokens, shape, shares))
    stage.tokens += tokens
    stage.known = stage.known and shares.known
    if not stage.shapes or stage.shapes[-1] != shape:
        stage.shapes.append(shape)
    for name, share in shares.sources.items():
        stage.source_tokens[name] = stage.source_tokens.get(name, 0.0) + share * tokens
    for name, passes in per_token.items():
        stage.source_passes[name] = stage.source_passes.get(name, 0.0) + passes * tokens
        plan.source_passes[name] = plan.source_passes.get(name, 0.0) + passes * tokens
    visual = shares.visual
    stage.visual_tokens = None if stage.visual_tokens is None or visual is None else stage.visual_tokens + visual * tokens
    return tokens


def _without(weights: Mapping[str, float], gone: set[str]) -> dict[str, float]:
    """The others take the share of those that are gone, in proportion to their weights."""
    total, left = sum(weights.values()), {name: weight for name, weight in weights.items() if name not in gone}
    scale = total / kept if (kept := sum(left.values())) > 0 else 0.0
    return {name: weight * scale for name, weight in left.items()}
