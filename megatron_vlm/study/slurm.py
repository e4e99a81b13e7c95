"""A study on a cluster: one array of jobs for each depth of the graph, each waiting for the one before it."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from megatron_vlm.data import atomic_file
from megatron_vlm.errors import UserError
from megatron_vlm.study.executor import needed
from megatron_vlm.study.folder import StudyFolder
from megatron_vlm.study.segments import Graph, Segment

_SCRIPT = """#!/usr/bin/env bash
# Segments of depth {depth}; queued by `megatron-vlm study run --slurm`. A task runs one segment: `study run --only` does
# nothing where it is done, goes on where it was stopped, and refuses where what it begins with has failed.
#SBATCH --job-name={name}-{depth}
#SBATCH --array=0-{last}
#SBATCH --output={logs}/%x-%a.txt
#SBATCH --signal=B:TERM@300
#SBATCH --requeue
{options}
segments=({segments})
trap 'kill -TERM $child; wait $child; scontrol requeue ${{SLURM_ARRAY_JOB_ID}}_${{SLURM_ARRAY_TASK_ID}}' TERM
{command} study run {study} --only "${{segments[$SLURM_ARRAY_TASK_ID]}}" --nproc-per-node {processes} &
child=$!
wait $child
"""


def submit(graph: Graph, folder: StudyFolder, study: Path, options: str, processes: int) -> Iterator[str]:
    """Write the arrays' scripts and queue them. An array begins when every task of the one before has ended, well or not,
    so that a failure takes only those with it that begin with it. Yields a line for each.

    Raises:
        UserError: there is no sbatch, or it refuses.
    """
    waiting = needed(graph, folder)
    if not waiting:
        yield "everything is done"
        return
    place = folder.root / "slurm"
    (place / "logs").mkdir(parents=True, exist_ok=True)
    before: str | None = None
    for depth, segments in enumerate(by_depth(waiting)):
        script = place / f"depth-{depth}.sbatch"
        atomic_file.write_text(script, array_script(graph, place, study, depth, segments, options, processes))
        job = _sbatch(script, before)
        after = f", after job {before}" if before else ""
        yield f"job {job}: {len(segments)} segment(s) of depth {depth}{after} ({script})"
        before = job


def by_depth(segments: list[Segment]) -> list[list[Segment]]:
    """Segments by how many of the others come before them."""
    depths: dict[str, int] = {}
    found: list[list[Segment]] = []
    for segment in segments:  # each comes after what it begins with
        parent = segment.parent
        depth = 0 if parent is None else depths.get(parent.key, -1) + 1
        depths[segment.key] = depth
        while len(found) <= depth:
            found.append([])
        found[depth].append(segment)
    return found


def array_script(
    graph: Graph, place: Path, study: Path, depth: int, segments: list[Segment], options: str, processes: int
) -> str:
    given = [f"#SBATCH {option}" for option in _options(options)]
    return _SCRIPT.format(
        depth=depth,
        name=graph.study.name,
        last=len(segments) - 1,
        logs=place / "logs",
        options="\n".join(given),
        segments=" ".join(segment.key for segment in segments),
        command=f"{shlex.quote(sys.executable)} -m megatron_vlm.cli.main",
        study=shlex.quote(str(study)),
        processes=processes,
    )


def _options(text: str) -> list[str]:
    """`--gpus-per-node 8 --time=1:00:00` as options of a line each."""
    found: list[str] = []
    for word in shlex.split(text):
        if word.startswith("-") or not found:
            found.append(word)
        else:
            found[-1] += f" {word}"
    return found


def _sbatch(script: Path, before: str | None) -> str:
    command = ["sbatch", "--parsable"]
    if before is not None:
        command.append(f"--dependency=afterany:{before}")
    try:
        done = subprocess.run([*command, str(script)], capture_output=True, text=True, check=False)
    except OSError as error:
        raise UserError(f"sbatch cannot be run ({error.strerror}); without Slurm leave --slurm out") from None
    if done.returncode:
        raise UserError(f"sbatch refused {script}: {done.stderr.strip()}")
    return done.stdout.strip().split(";")[0]
