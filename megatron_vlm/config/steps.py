"""The shape of every step: a run is segments of steps that are alike in stage, sequence length and batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from megatron_vlm.config.kept_features import stages_with_features
from megatron_vlm.config.picture_rows import PictureRows

if TYPE_CHECKING:
    from megatron_vlm.config.curriculum import StageConfig
    from megatron_vlm.config.run import RunConfig


@dataclass(frozen=True, slots=True)
class StepShape:
    """What a step is made of. `stage` is an index; sizes are in packs, positions, pixels and rows of a picture.

    With a `patch` (its side in pixels) pictures keep their aspect: `image_size` is the side of the square with as many
    patches as one has at most, `image_tokens` the rows of that, and `fold` the patches of a side that become one row.

    `features` is not 0 where the encoder's features are read from files: numbers that become one row, those of all patches
    that do.
    """

    stage: int
    sequence_length: int
    micro_batch_size: int
    global_batch_size: int
    image_size: int
    image_pool: int
    image_tokens: int
    patch: int = 0
    fold: int = 1
    features: int = 0

    @property
    def picture(self) -> PictureRows:
        """Rows that a picture takes."""
        return PictureRows(self.image_tokens, self.patch, self.fold)

    @property
    def picture_bytes(self) -> int:
        """Of one picture (the largest) as a batch holds it: pixels of three bytes, or its features in bf16."""
        return 2 * self.features * self.image_tokens if self.features else 3 * self.image_size**2


@dataclass(frozen=True, slots=True)
class Segment:
    """Steps `first_step .. first_step + steps`, alike in shape; packs and positions are counted from the run's start."""

    shape: StepShape
    first_step: int
    steps: int
    first_pack: int
    first_token: int

    @property
    def end_step(self) -> int:
        return self.first_step + self.steps

    @property
    def tokens_per_step(self) -> int:
        return self.shape.global_batch_size * self.shape.sequence_length


def _batch_at(config: RunConfig, pack: int, full: int) -> tuple[int, int | None]:
    """The batch of a step that begins at `pack`, and packs until it grows (None: never)."""
    schedule = config.schedule
    start, increment = schedule.rampup_batch_start, schedule.rampup_batch_increment
    if start is None or start >= full or pack >= schedule.rampup_packs or increment < 1:
        return full, None
    rises = -(-(full - start) // increment)
    level = pack * rises // schedule.rampup_packs
    grows_at = -(-(level + 1) * schedule.rampup_packs // rises)
    return min(full, start + level * increment), grows_at - pack


def _steps_left(config: RunConfig, stage: StageConfig, step: int, token: int, per_step: int) -> int:
    """Steps of `per_step` positions from here to the end of `stage`; not below 0."""
    schedule = config.schedule
    by_tokens: list[float] = [] if schedule.train_tokens is None else [schedule.train_tokens]
    by_steps: list[float] = [] if schedule.train_steps is None else [schedule.train_steps]
    if stage.until is not None:
        # the small constant keeps 0.29 * 100 from rounding up to 30
        if schedule.train_steps is not None:
            by_steps.append(stage.until * schedule.train_steps - 1e-9)
        else:
            by_tokens.append(stage.until * (schedule.train_tokens or 0) * (1 - 1e-15) - 1e-9)
    if stage.until_tokens is not None:
        by_tokens.append(stage.until_tokens)
    if stage.until_steps is not None:
        by_steps.append(stage.until_steps)
    left = [-int(-(end - step) // 1) for end in by_steps] + [-int(-(end - token) // per_step) for end in by_tokens]
    return max(0, min(left, default=0))


def run_segments(config: RunConfig) -> Iterator[Segment]:
    """The run from its first step to its last, in order. A stage without a step has no segment."""
    step = pack = token = 0
    data, schedule, model = config.data, config.schedule, config.model
    reads = stages_with_features(config)
    for index, stage in enumerate(config.curriculum.stages):
        length = stage.sequence_length or data.sequence_length
        size = stage.image_size or model.vision.image_size
        full = stage.global_batch_size or schedule.global_batch_size
        while True:
            batch, grows_in = _batch_at(config, pack, full)
            steps = _steps_left(config, stage, step, token, batch * length)
            if grows_in is not None:
                steps = min(steps, -(-grows_in // batch))
            if not steps:
                break
            micro = stage.micro_batch_size or schedule.micro_batch_size
            rows = model.image_tokens_at(size, stage.image_pool)
            fold = model.projector.pixel_shuffle * stage.image_pool
            aspect = (model.vision.patch_size, fold) if data.pictures.resize == "native" else (0, 1)
            features = fold**2 * model.vision_width if reads[index] else 0
            shape = StepShape(index, length, micro, batch, size, stage.image_pool, rows, *aspect, features)
            yield Segment(shape, step, steps, pack, token)
            step, pack, token = step + steps, pack + steps * batch, token + steps * batch * length
