"""Checkpoints by megatron-core's dist_checkpointing: whole or absent, loadable at another layout.

A checkpoint is a folder `step-00001200` with megatron-core's files, the resolved configuration and `run.json` (step, data
position, versions). It is written beside its place under another name, synced and renamed; `latest` moves last. Weights and
optimiser state are stored by global name and shape, so any TP x PP x DP can load them.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.validation import StrictHandling
from torch.distributed.checkpoint.api import CheckpointException

from megatron_vlm import __version__
from megatron_vlm.config.loading import from_map, to_map, to_yaml
from megatron_vlm.config.run import RunConfig
from megatron_vlm.errors import DataError
from megatron_vlm.models.initialization import SHARDING_METADATA
from megatron_vlm.training.engine import Engine, unwrap

RUN_FILE = "run.json"
_METADATA = {
    **SHARDING_METADATA,
    # the one format of the distributed optimiser that other TP and PP sizes can load
    "distrib_optim_sharding_type": "fully_reshardable",
    "chained_optim_avoid_prefix": True,
}


def checkpoint_folder(config: RunConfig) -> Path:
    """Where this run's checkpoints are."""
    return Path(config.checkpoint.directory or Path(config.logging.directory) / "checkpoints")


def step_folder(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}"


def _model_state(engine: Engine) -> dict[str, Any]:
    chunks = [unwrap(chunk) for chunk in engine.chunks]
    if len(chunks) == 1:
        return {"model": chunks[0].sharded_state_dict(metadata=dict(_METADATA))}
    return {f"model{i}": chunk.sharded_state_dict(metadata=dict(_METADATA)) for i, chunk in enumerate(chunks)}


def _merged(model_state: dict[str, Any]) -> dict[str, Any]:
    """The optimiser looks its parameters up in one map, whatever the number of chunks."""
    if list(model_state) == ["model"]:
        return model_state["model"]
    return {f"{i}.{name}": value for i, chunk in enumerate(model_state.values()) for name, value in chunk.items()}


def _sync_tree(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def save_checkpoint(engine: Engine, config: RunConfig, step: int, data_state: dict[str, Any], extra: dict[str, Any]) -> Path:
    """Write the checkpoint of the moment before step `step`. Every rank calls it; returns the folder."""
    folder = checkpoint_folder(config)
    final = step_folder(folder, step)
    partial = folder / f".{final.name}.partial"
    if dist.get_rank() == 0:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    dist.barrier()
    with engine.whole_parameters():
        model = _model_state(engine)
        state = {
            **model,
            "optimizer": engine.optimizer.sharded_state_dict(_merged(model), False, dict(_METADATA)),
        }
        dist_checkpointing.save(state, str(partial), content_metadata=dict(_METADATA))
    dist.barrier()
    if dist.get_rank() == 0:
        run = {
            "step": step,
            "stage": engine.stage,
            "version": __version__,
            "distributed_optimizer": config.parallel.use_distributed_optimizer,
            "data": data_state,
            "config": to_map(config),
            **extra,
        }
        (partial / RUN_FILE).write_text(json.dumps(run), encoding="utf-8")
        (partial / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
        _sync_tree(partial)
        if final.exists():  # the same step again, after a resume from an earlier one
            shutil.rmtree(final)
        partial.rename(final)
        latest = folder / ".latest.partial"
        latest.write_text(final.name + "\n", encoding="utf-8")
        _sync_file(latest)
        latest.rename(folder / "latest")
        _sync_file(folder)
        _prune(folder, config.checkpoint.keep_last)
    dist.barrier()
    return final


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _prune(folder: Path, keep_last: int) -> None:
    if keep_last > 0:
        for old in complete_checkpoints(folder)[:-keep_last]:
            shutil.rmtree(old)


def is_complete(folder: Path) -> bool:
    """Whether a folder is a whole checkpoint: renamed into place, its files readable."""
    try:
        json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return (folder / "metadata.json").is_file() and (folder / ".metadata").is_file()


def complete_checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints, oldest first."""
    return sorted(path for path in folder.glob("step-*") if is_complete(path))


def find_checkpoint(where: Path) -> Path:
    """`where` itself if it is a checkpoint, else the newest in it (or in its `checkpoints` folder).

    Raises:
        DataError: there is none; names what was looked for.
    """
    if is_complete(where):
        return where
    for folder in (where, where / "checkpoints"):
        found = complete_checkpoints(folder)
        damaged = [p.name for p in folder.glob("step-*") if not is_complete(p)]
        if damaged and found:
            print(
                f"megatron-vlm: passing over damaged checkpoints in {folder}: {', '.join(damaged)}",
                file=sys.stderr,
            )
        if found:
            return found[-1]
    raise DataError(f"{where}: no checkpoint here (a folder step-* with {RUN_FILE}); give a run's folder or a step's")


def read_run_file(checkpoint: Path) -> dict[str, Any]:
    """Raises DataError when `checkpoint` is no whole checkpoint."""
    try:
        return json.loads((checkpoint / RUN_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{checkpoint / RUN_FILE}: cannot be read ({error}); take an earlier checkpoint") from None


def load_model(engine: Engine, checkpoint: Path) -> None:
    """Weights alone, into the chunks of this layout."""
    _load(engine, checkpoint, _model_state(engine))


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
            "optimizer": engine.optimizer.sharded_state_dict(_merged(model), True, dict(_METADATA)),
        }
        loaded = _load(engine, checkpoint, wanted)
        engine.optimizer.load_state_dict(loaded["optimizer"])


def _load(engine: Engine, checkpoint: Path, wanted: dict[str, Any]) -> dict[str, Any]:
    try:
        loaded = dist_checkpointing.load(wanted, str(checkpoint), strict=StrictHandling.ASSUME_OK_UNEXPECTED)
    # torch's CheckpointException, raised for a tensor that is missing or has another shape, is no Exception
    except (CheckpointException, dist_checkpointing.core.CheckpointingException, KeyError, RuntimeError) as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise DataError(
            f"{checkpoint}: does not fit this model ({reason[:300]}); its own configuration is in "
            f"{checkpoint / 'config.yaml'}"
        ) from error
    chunks: Sequence[Any] = [unwrap(chunk) for chunk in engine.chunks]
    names = ["model"] if len(chunks) == 1 else [f"model{i}" for i in range(len(chunks))]
    for name, chunk in zip(names, chunks, strict=True):
        chunk.load_state_dict(loaded[name], strict=True)
    return loaded


def checkpoint_config(checkpoint: Path) -> RunConfig:
    """The configuration that the checkpoint was trained with."""
    return from_map(read_run_file(checkpoint)["config"])


def describe_checkpoint(checkpoint: Path) -> str:
    """A printable summary, for `megatron-vlm inspect`. Raises DataError when the folder is no checkpoint."""
    checkpoint = find_checkpoint(checkpoint)
    run = read_run_file(checkpoint)
    config = from_map(run["config"])
    size = sum(path.stat().st_size for path in checkpoint.rglob("*") if path.is_file())
    stage = config.curriculum.stages[run["stage"]].name
    sources = run["data"]["sources"]
    filled, visual = (sum(source[key] for source in sources.values()) for key in ("tokens", "visual"))
    lines = [
        f"checkpoint  {checkpoint}",
        f"step        {run['step']} of {config.total_steps}, stage {stage!r}",
        f"positions   {filled:,} filled ({visual:,} visual), {run['data']['padded']:,} padded",
        f"written by  megatron-vlm {run['version']}, "
        f"TP {config.parallel.tensor_model_parallel_size} x PP {config.parallel.pipeline_model_parallel_size}",
        f"size        {size / 1e6:.1f} MB",
    ]
    for name, source in sources.items():
        lines.append(f"source      {name}: {source['tokens']:,} positions, {source['passed']:,} documents passed")
    return "\n".join(lines)


def remove_partial(folder: Path) -> None:
    """Clear what an interrupted save left."""
    for path in folder.glob(".step-*.partial"):
        with contextlib.suppress(OSError):
            shutil.rmtree(path)
