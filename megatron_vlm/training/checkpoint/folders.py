"""Folders of a run's checkpoints: which are whole, which one is next in line, and how one gets its name.

::

    checkpoints/
      latest                                   name of the newest whole one, moved last
      step-00001200/                           whole
      .step-00001300.3f9c21d4.partial/         being written, or left by a run that was killed
      .step-00001200.replaced/                 the old one, for the instant in which a new one takes its name
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
from pathlib import Path

from megatron_vlm.config.run import RunConfig
from megatron_vlm.data import atomic_file
from megatron_vlm.errors import DataError
from megatron_vlm.training.checkpoint.checksums import size_damage

RUN_FILE = "run.json"
LATEST = "latest"


def checkpoint_folder(config: RunConfig) -> Path:
    """Where this run's checkpoints are."""
    return Path(config.checkpoint.directory or Path(config.logging.directory) / "checkpoints")


def step_folder(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}"


def step_of(checkpoint: Path) -> int:
    """The step in a folder's name; -1 where it has none."""
    prefix, _, digits = checkpoint.name.partition("-")
    return int(digits) if prefix == "step" and digits.isdecimal() else -1


def damage(checkpoint: Path) -> str | None:
    """What makes a folder no whole checkpoint, told from its small files and all sizes; None when nothing does."""
    try:
        json.loads((checkpoint / RUN_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return f"{RUN_FILE} is missing" if checkpoint.is_dir() else "it is not there"
    except (OSError, ValueError) as error:
        return f"{RUN_FILE} cannot be read ({error})"
    for name in ("metadata.json", ".metadata"):
        if not (checkpoint / name).is_file():
            return f"{name} is missing"
    return size_damage(checkpoint)


def is_complete(folder: Path) -> bool:
    """Whether a folder is a whole checkpoint: renamed into place, its files there. Their content is not read."""
    return damage(folder) is None


def all_checkpoints(folder: Path) -> list[Path]:
    """Folders that have a checkpoint's name, whole or not, oldest first."""
    return sorted((path for path in folder.glob("step-*") if step_of(path) >= 0), key=step_of)


def complete_checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints, oldest first."""
    return [path for path in all_checkpoints(folder) if is_complete(path)]


def latest_of(folder: Path) -> Path | None:
    """What `latest` names, there or not; None without one."""
    try:
        name = (folder / LATEST).read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return None
    return folder / name if step_of(Path(name)) >= 0 and Path(name).name == name else None


def in_line(folder: Path) -> list[Path]:
    """Folders in the order in which they are tried: what `latest` names, those before it, newest first, then later ones.

    Later ones are of a run that was taken back to an earlier checkpoint, or were cut off just before `latest` moved.
    """
    found, latest = all_checkpoints(folder)[::-1], latest_of(folder)
    if latest is None:
        return found
    last = step_of(latest)
    return [latest, *(p for p in found if step_of(p) < last), *(p for p in found if step_of(p) > last)]


def warn_of_damage(checkpoint: Path, reason: str) -> None:
    print(f"megatron-vlm: passing over the damaged checkpoint {checkpoint}: {reason}", file=sys.stderr, flush=True)


def holding_folder(where: Path) -> Path | None:
    """The folder of checkpoints that `where` is or has; None where `where` is no run's folder."""
    return next((folder for folder in (where, where / "checkpoints") if in_line(folder)), None)


def names_one(where: Path) -> bool:
    """Whether `where` means one checkpoint, whole or damaged, and not a run."""
    return step_of(where) >= 0 or (where / RUN_FILE).exists()


def refuse_damaged(checkpoint: Path, reason: str) -> DataError:
    return DataError(f"{checkpoint} is no whole checkpoint: {reason}; give an earlier one, or the run's folder")


def no_checkpoint(where: Path) -> DataError:
    return DataError(f"{where}: no checkpoint here (a folder step-* with {RUN_FILE}); give a run's folder or a step's")


def find_checkpoint(where: Path) -> Path:
    """`where` itself if it names a checkpoint, else the newest whole one in it (or in its `checkpoints` folder).

    Contents are not compared with checksums: that is `content_damage`, or `choose_checkpoint` on all ranks.

    Raises:
        DataError: there is none, or `where` is a damaged one; names what was looked for.
    """
    if names_one(where):
        reason = damage(where)
        if reason is not None:
            raise refuse_damaged(where, reason)
        return where
    folder = holding_folder(where)
    for checkpoint in in_line(folder) if folder else ():
        reason = damage(checkpoint)
        if reason is None:
            return checkpoint
        warn_of_damage(checkpoint, reason)
    raise no_checkpoint(where)


def publish(partial: Path, final: Path) -> None:
    """Give a whole and flushed folder its name, then move `latest`. Raises OSError.

    A folder cannot replace another in one call: the old one of the same step steps aside, and `recover` puts it back if the
    process dies right then.
    """
    folder, replaced = final.parent, final.parent / f".{final.name}.replaced"
    if final.exists():
        shutil.rmtree(replaced, ignore_errors=True)
        final.rename(replaced)
    try:
        partial.rename(final)
    except OSError:
        if replaced.exists():
            replaced.rename(final)
        raise
    atomic_file.sync_folder(folder)
    atomic_file.write_text(folder / LATEST, final.name + "\n")
    shutil.rmtree(replaced, ignore_errors=True)


def prune(folder: Path, newest: Path, keep_last: int, keep_every: int) -> None:
    """Remove old checkpoints: of `newest` and those before it, all but the last `keep_last` and multiples of `keep_every`.

    Damaged ones are not counted, so that `keep_last` good ones remain. Later ones, of a run that was taken back, are left.
    """
    if keep_last <= 0:
        return
    older = [path for path in complete_checkpoints(folder) if step_of(path) <= step_of(newest)]
    for path in older[:-keep_last]:
        if not (keep_every > 0 and step_of(path) % keep_every == 0):
            # first out of the way in one call: half a folder must not look like a checkpoint
            doomed = folder / f".{path.name}.removed.partial"
            shutil.rmtree(doomed, ignore_errors=True)
            path.rename(doomed)
            shutil.rmtree(doomed, ignore_errors=True)


def recover(folder: Path) -> None:
    """Put right what a killed run left: an old checkpoint that had stepped aside comes back, half ones go."""
    for path in folder.glob(".step-*.replaced"):
        final = folder / path.name[1:].removesuffix(".replaced")
        with contextlib.suppress(OSError):
            if final.exists():
                shutil.rmtree(path)
            else:
                path.rename(final)
    remove_partial(folder)


def remove_partial(folder: Path) -> None:
    """Clear what an interrupted save left."""
    for path in folder.glob(".step-*.partial"):
        with contextlib.suppress(OSError):
            shutil.rmtree(path)
    with contextlib.suppress(OSError):
        atomic_file.discard(folder / LATEST)
