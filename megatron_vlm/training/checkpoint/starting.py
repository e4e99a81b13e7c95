"""A run that goes on from a checkpoint, or a new one that begins with the weights of another one, with or without the
optimiser's moments."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from megatron_vlm.config.run import RunConfig
from megatron_vlm.errors import DataError
from megatron_vlm.models.lora import is_lora
from megatron_vlm.training.checkpoint.choosing import choose_in
from megatron_vlm.training.checkpoint.run_file import checkpoint_config, read_run_file
from megatron_vlm.training.checkpoint.state import load_model, load_training
from megatron_vlm.training.engine import Engine


def start_from(engine: Engine, config: RunConfig) -> Path:
    """Load what `checkpoint.start_from` and `start_with` name into an engine that has no stage yet; returns the checkpoint.

    Collective. Afterwards the engine is at stage 0. Steps, learning rate and data begin anew. With moments, Adam's count of
    updates goes on, so that moments which are warm are not corrected as if they were new.

    Raises:
        DataError: no whole checkpoint, one of another model, or one without moments of what the first stage trains.
    """
    settings = config.checkpoint
    assert settings.start_from is not None
    checkpoint = choose_in(Path(settings.start_from), settings.verify)
    if settings.start_with == "weights":
        # low-rank updates begin with nothing where the model that they are for had none
        new = config.model.lora.rank and not checkpoint_config(checkpoint).model.lora.rank
        load_model(engine, checkpoint, without=is_lora if new else None)
        engine.enter_stage(0)
        return checkpoint
    run, theirs, first = read_run_file(checkpoint), checkpoint_config(checkpoint).curriculum, config.curriculum.stages[0]
    cold = sorted(set(theirs.stages[run["stage"]].freeze) - set(first.freeze))
    if cold:
        raise DataError(
            f"{checkpoint} has no moments of {', '.join(cold)}, frozen when it was saved, and stage {first.name!r} trains "
            f"that; add it to the stage's freeze, or set checkpoint.start_with to weights"
        )
    # the state has the groups of the curriculum that it was saved under: it is loaded there and carried over by name
    engine.config = replace(config, curriculum=theirs)
    engine.enter_stage(run["stage"])
    load_training(engine, config, checkpoint, run)
    engine.updates.load(run["updates"])
    engine.config = config
    engine.enter_stage(0, anew=True)
    return checkpoint


def go_on(engine: Engine, config: RunConfig, checkpoint: Path, run: dict[str, Any], now: int | None = None) -> None:
    """Load a checkpoint of this run, or of one that it branches from.

    Collective. The engine is then at the stage `now`; None: of the checkpoint's step. Where that trains other modules than
    the checkpoint was saved for, as a run that leaves a text trunk does, what goes on keeps its moments and what is new
    begins without, as at any border of stages.

    Raises:
        DataError: the checkpoint does not fit the model or the optimiser.
    """
    theirs, saved = checkpoint_config(checkpoint).curriculum, int(run["stage"])
    now = config.stage_of(int(run["step"])) if now is None else now
    stages = config.curriculum.stages
    groups_are_alike = [set(stage.freeze) for stage in theirs.stages] == [set(stage.freeze) for stage in stages]
    if groups_are_alike and set(stages[saved].freeze) == set(stages[now].freeze):
        engine.enter_stage(now)
        load_training(engine, config, checkpoint, run)
        engine.updates.load(run["updates"])
        return
    # the state has the groups of the stage that it was saved in
    engine.config = replace(config, curriculum=theirs)
    engine.enter_stage(saved, anew=True)
    load_training(engine, config, checkpoint, run)
    engine.updates.load(run["updates"])
    engine.config = config
    engine.enter_stage(now, anew=True)
