"""The length of a run that is given in passes over a source, as positions. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from megatron_vlm.config.checks import refuse
from megatron_vlm.config.picture_rows import PictureRows
from megatron_vlm.config.ranges import range_problems
from megatron_vlm.config.run import RunConfig
from megatron_vlm.data.indexed_reader import IndexedReader
from megatron_vlm.data.sequence_facts import open_sequence_facts
from megatron_vlm.data.source_totals import count_dataset, source_totals
from megatron_vlm.errors import ConfigError
from megatron_vlm.planning.source_shares import SourceShape, shares_of


def with_length(config: RunConfig) -> RunConfig:
    """`config` with `schedule.train_epochs` and `evaluation.interval_epochs` as positions and steps.

    A source with share s of the positions, P of them in a pass, has had N passes after N * P / s. Padding is not foreseen,
    so that a run of packs that are half a per cent padding ends half a per cent before.

    Raises:
        ConfigError: a number is out of its range; they are given for a run of several stages or of ramps, for a source that
            the stage does not read, or beside another length.
        DataError: a dataset that cannot be read.
    """
    schedule, evaluation = config.schedule, config.evaluation
    if not schedule.train_epochs:
        if evaluation.interval_epochs:
            raise ConfigError("evaluation.interval_epochs: counts the passes of schedule.train_epochs, which is not given")
        return config
    refuse(list(range_problems(config)))
    if schedule.train_tokens is not None or schedule.train_steps is not None:
        raise ConfigError("schedule.train_epochs: give train_epochs, train_tokens or train_steps, one of the three")
    if len(schedule.train_epochs) != 1:
        raise ConfigError("schedule.train_epochs: name one source, whose passes are the length of the run")
    ((source, epochs),) = schedule.train_epochs.items()
    stages = config.curriculum.stages
    if len(stages) != 1 or stages[0].ramp != "constant":
        raise ConfigError("schedule.train_epochs: is for a run of one stage of constant weights; give others train_tokens")
    share, positions = _share_and_pass(config, source)
    if not share or not positions:
        raise ConfigError(f"schedule.train_epochs: {epochs:g} passes over {source!r}, of which the stage reads {share:.3g}")
    found = replace(
        config, schedule=replace(schedule, train_epochs={}, train_tokens=max(1, round(epochs * positions / share)))
    )
    if evaluation.interval_epochs:
        interval = max(1, round(found.total_steps * evaluation.interval_epochs / epochs))
        found = replace(found, evaluation=replace(evaluation, interval_epochs=0.0, interval=interval))
    return found


def _share_and_pass(config: RunConfig, source: str) -> tuple[float, int]:
    """The source's share of the positions that the stage fills, and the positions of one pass over it."""
    stage = config.curriculum.stages[0]
    model, native = config.model, config.data.pictures.resize == "native"
    aspect = (model.vision.patch_size, model.projector.pixel_shuffle * stage.image_pool) if native else ()
    picture = PictureRows(model.image_tokens_at(stage.image_size, stage.image_pool), *aspect)
    shapes = {}
    for name, weight in stage.sources.items():
        if weight > 0 and name in config.data.sources:
            reader = IndexedReader(Path(config.data.sources[name]))
            facts = open_sequence_facts(reader.prefix, reader.sequence_count)
            totals = source_totals(count_dataset(reader), reader, facts, picture)
            if totals.positions:
                visual = totals.visual / totals.positions
                shapes[name] = SourceShape(totals.positions / totals.documents, visual, totals.positions)
    if source not in shapes:
        known = ", ".join(shapes) or "none"
        raise ConfigError(f"schedule.train_epochs: {source!r} is no source that the stage reads; it reads {known}")
    shares = shares_of({name: stage.sources[name] for name in shapes}, stage.measure, shapes)
    return shares.sources.get(source, 0.0), shapes[source].positions or 0
