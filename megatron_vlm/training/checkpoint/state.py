"""What of a run is in a checkpoint, by global name and shape, and how it comes back into this layout."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.validation import StrictHandling
from torch.distributed.checkpoint.api import CheckpointException

from megatron_vlm.config.run import RunConfig
from megatron_vlm.errors import DataError
from megatron_vlm.models.checkpoint_names import is_extra_state
from megatron_vlm.models.initialization import SHARDING_METADATA
from megatron_vlm.models.vision import VisionEncoder
from megatron_vlm.training.checkpoint.own_shards import own_shards
from megatron_vlm.training.engine import Engine, unwrap

SHARDING = {
    **SHARDING_METADATA,
    # the one format of the distributed optimiser that other TP and PP sizes can load
    "distrib_optim_sharding_type": "fully_reshardable",
    "chained_optim_avoid_prefix": True,
}


def _model_state(engine: Engine) -> dict[str, Any]:
    chunks = [unwrap(chunk) for chunk in engine.chunks]
    if len(chunks) == 1:
        return {"model": chunks[0].sharded_state_dict(metadata=dict(SHARDING))}
    return {f"model{i}": chunk.sharded_state_dict(metadata=dict(SHARDING)) for i, chunk in enumerate(chunks)}


def _merged(model_state: dict[str, Any]) -> dict[str, Any]:
    """The optimiser looks its parameters up in one map, whatever the number of chunks."""
    if list(model_state) == ["model"]:
        return model_state["model"]
    return {f"{i}.{name}": value for i, chunk in enumerate(model_state.values()) for name, value in chunk.items()}


def saved_state(engine: Engine) -> dict[str, Any]:
    """Sharded weights and optimiser state, sharing memory with the engine; inside `engine.whole_parameters`."""
    model = _model_state(engine)
    with own_shards(engine.optimizer.inner):
        optimizer = engine.optimizer.sharded_state_dict(_merged(model), False, dict(SHARDING))
    return {**model, "optimizer": optimizer}


def load_model(engine: Engine, checkpoint: Path, without: Callable[[str], bool] | None = None) -> None:
    """Weights alone, into the chunks of this layout; those that `without` names keep the values that they have."""
    state = _model_state(engine)
    if without is not None:
        state = {
            chunk: {name: value for name, value in weights.items() if not without(name)} for chunk, weights in state.items()
        }
    _load(engine, checkpoint, state, without)


def load_encoder(encoder: VisionEncoder, checkpoint: Path) -> None:
    """The encoder's weights alone, of a checkpoint of any layout.

    Raises:
        DataError: the checkpoint's encoder is another one.
    """
    wanted = encoder.sharded_state_dict("vision.", metadata=dict(SHARDING))
    # as `VisionLanguageModel.leaves_out`
    asked = {name: value for name, value in wanted.items() if not is_extra_state(name)}
    loaded = _read(checkpoint, {"encoder": asked})["encoder"]
    own = {name.removeprefix("vision."): value for name, value in loaded.items()}
    kept = {n: value for n, value in encoder.state_dict().items() if is_extra_state(n)}
    encoder.load_state_dict({**own, **kept}, strict=True)


def load_training(engine: Engine, config: RunConfig, checkpoint: Path, run: dict[str, Any]) -> None:
    """Weights and optimiser state. The engine stands at the stage of the checkpoint's step.

    Raises:
        DataError: the optimiser state was saved with, or without, the distributed optimiser, unlike this run.
    """
    if bool(run["distributed_optimizer"]) != config.parallel.use_distributed_optimizer:
        raise DataError(
            f"{checkpoint}: its optimiser state was saved with parallel.use_distributed_optimizer "
            f"{run['distributed_optimizer']} and loads only so; set it to {str(run['distributed_optimizer']).lower()}"
        )
    with engine.whole_parameters():
        model = _model_state(engine)
        wanted = {
            **model,
            "optimizer": engine.optimizer.sharded_state_dict(_merged(model), True, dict(SHARDING)),
        }
        loaded = _load(engine, checkpoint, wanted)
        engine.optimizer.load_state_dict(loaded["optimizer"])


def _load(
    engine: Engine, checkpoint: Path, wanted: dict[str, Any], without: Callable[[str], bool] | None = None
) -> dict[str, Any]:
    loaded = _read(checkpoint, wanted)
    chunks: Sequence[Any] = [unwrap(chunk) for chunk in engine.chunks]
    names = ["model"] if len(chunks) == 1 else [f"model{i}" for i in range(len(chunks))]
    for name, chunk in zip(names, chunks, strict=True):
        kept = {
            n: value
            for n, value in chunk.state_dict().items()
            if n not in loaded[name] and (chunk.leaves_out(n) or (without is not None and without(n)))
        }
        chunk.load_state_dict({**loaded[name], **kept}, strict=True)
    return loaded


def _read(checkpoint: Path, wanted: dict[str, Any]) -> dict[str, Any]:
    try:
        loaded: dict[str, Any] = dist_checkpointing.load(wanted, str(checkpoint), strict=StrictHandling.ASSUME_OK_UNEXPECTED)
    # torch's CheckpointException, raised for a tensor that is missing or has another shape, is no Exception
    except (CheckpointException, dist_checkpointing.core.CheckpointingException, KeyError, RuntimeError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        # torch prints the traceback of each rank: what was wrong is the line that names an error
        reason = next((line for line in lines if line.split(":")[0].endswith("Error")), lines[0])
        raise DataError(
            f"{checkpoint}: does not fit this model ({reason[:300]}); its own configuration is in "
            f"{checkpoint / 'config.yaml'}"
        ) from error
    return loaded
