"""Checkpoints by megatron-core's dist_checkpointing: whole or absent, loadable at another layout.

A checkpoint is a folder `step-00001200` with megatron-core's files, the resolved configuration, `run.json` (step, data
position, versions) and `checksums.json`. It is written beside its place under another name, flushed and renamed; `latest`
moves last. Weights and optimiser state are stored by global name and shape, so any TP x PP x DP can load them.
docs/checkpoints.md is the page for users.
"""

from megatron_vlm.training.checkpoint.checksums import content_damage
from megatron_vlm.training.checkpoint.choosing import choose_checkpoint, choose_in, newest_whole, require_undamaged
from megatron_vlm.training.checkpoint.folders import (
    RUN_FILE,
    checkpoint_folder,
    complete_checkpoints,
    find_checkpoint,
    is_complete,
    remove_partial,
    step_folder,
)
from megatron_vlm.training.checkpoint.run_file import checkpoint_config, describe_checkpoint, read_run_file
from megatron_vlm.training.checkpoint.saver import Saver
from megatron_vlm.training.checkpoint.starting import go_on, start_from
from megatron_vlm.training.checkpoint.state import load_encoder, load_model, load_training

__all__ = [
    "RUN_FILE",
    "Saver",
    "checkpoint_config",
    "checkpoint_folder",
    "choose_checkpoint",
    "choose_in",
    "complete_checkpoints",
    "content_damage",
    "describe_checkpoint",
    "find_checkpoint",
    "is_complete",
    "load_encoder",
    "load_model",
    "go_on",
    "load_training",
    "newest_whole",
    "read_run_file",
    "remove_partial",
    "require_undamaged",
    "start_from",
    "step_folder",
]
