"""When should images enter? One text trunk, branches at chosen points, from one file to the figure.

  megatron-vlm study plan examples/studies/when_79m.yaml --gpu h100 --gpus 64      the graph, its cost, what sharing saves
  megatron-vlm study run examples/studies/demo.yaml --jobs 2                        run what is not done; again to go on
  megatron-vlm study run examples/studies/when_79m.yaml --slurm --slurm-options '--gpus-per-node 8 --time 24:00:00'
  megatron-vlm study status examples/studies/demo.yaml
  megatron-vlm study report examples/studies/demo.yaml                              report.html, figures, runs.csv

A study file names a base configuration, a text stage and an image stage, axes (introduction point, share of visual tokens,
learning-rate policy, encoder, seeds, ...), grids over them, fine-tuning and evaluation (docs/study.md). Runs that begin
alike share what they have in common, so the text trunk is trained once. Each piece is an ordinary run of the trainer in
DIRECTORY/segments; what is done is never run again, whatever is killed goes on from its last checkpoint, and what fails
three times takes only those with it that begin with it.

exit codes: 0 done; 1 something failed; 2 refused (study file, another runner); 75 stopped by a signal and saved
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from megatron_vlm.study.segments import Graph, Segment


def add_arguments(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(dest="action", metavar="plan|run|status|report", required=True)
    plan = verbs.add_parser("plan", help="the graph of segments, its cost, and what sharing saves", allow_abbrev=False)
    plan.add_argument("--gpu", default="h100", help="what is trained on (default: %(default)s)")
    plan.add_argument("--gpus", type=int, default=8, metavar="N", help="of each run (default: %(default)s)")
    plan.add_argument("--price", type=float, metavar="P", help="of a GPU for an hour")
    run = verbs.add_parser("run", help="run what is not done", allow_abbrev=False)
    run.add_argument("--jobs", type=int, default=1, metavar="N", help="segments at once (default: %(default)s)")
    run.add_argument("--nproc-per-node", type=int, default=1, metavar="N", help="ranks of each (default: %(default)s)")
    run.add_argument("--attempts", type=int, default=3, metavar="N", help="at a segment that fails (default: %(default)s)")
    run.add_argument("--only", metavar="KEY", help="one segment, by its key or its folder's name")
    run.add_argument("--slurm", action="store_true", help="queue arrays of jobs that wait for each other, instead")
    run.add_argument("--slurm-options", default="", metavar="TEXT", help="of sbatch: partition, GPUs, time")
    status = verbs.add_parser("status", help="how far it is", allow_abbrev=False)
    report = verbs.add_parser("report", help="the page, the figures and the table of runs", allow_abbrev=False)
    report.add_argument("--out", type=Path, metavar="FOLDER", help="(default: report in the study's folder)")
    for one in (plan, run, status, report):
        one.add_argument("study", type=Path, metavar="STUDY", help="a study's .yaml")


def run(args: argparse.Namespace) -> int:
    from megatron_vlm.study.segments import study_graph
    from megatron_vlm.study.study_file import read_study

    graph = study_graph(read_study(args.study))
    return {"plan": _plan, "run": _run, "status": _status, "report": _report}[args.action](args, graph)


def _plan(args: argparse.Namespace, graph: Graph) -> int:
    from megatron_vlm.study.cost import segment_costs, totals
    from megatron_vlm.study.folder import StudyFolder
    from megatron_vlm.study.tables import describe_plan

    costs, notes = segment_costs(graph, args.gpu, args.gpus)
    folder = StudyFolder(graph.study.folder)
    print("\n".join(describe_plan(graph, costs, folder, args.gpu, notes)))
    if args.price is not None:
        print(f"at {args.price:g} an hour: {totals(graph, costs)[0].gpu_hours * args.price:,.0f}")
    return 0


def _run(args: argparse.Namespace, graph: Graph) -> int:
    from megatron_vlm.errors import ConfigError
    from megatron_vlm.study.executor import SAVED_ON_SIGNAL, Executor, Resources
    from megatron_vlm.study.folder import StudyFolder
    from megatron_vlm.study.tables import describe_status

    for name in ("jobs", "nproc_per_node", "attempts"):
        if getattr(args, name) < 1:
            raise ConfigError(f"--{name.replace('_', '-')} {getattr(args, name)} must be at least 1")
    folder = StudyFolder(graph.study.folder)
    if args.slurm:
        from megatron_vlm.study.slurm import submit

        for line in submit(graph, folder, args.study, args.slurm_options, args.nproc_per_node):
            print(line)
        return 0
    only = _segment(graph, args.only) if args.only else None
    board = _Board(graph, folder)
    executor = Executor(graph, folder, Resources(args.jobs, args.nproc_per_node, args.attempts), board.say, board.tick)
    outcome = executor.run(only)
    board.clear()
    print("\n".join(describe_status(graph, folder)))
    if outcome.stopped:
        return SAVED_ON_SIGNAL
    return 1 if outcome.failed else 0


def _segment(graph: Graph, name: str) -> Segment:
    from megatron_vlm.errors import ConfigError

    for segment in graph.segments:
        if name in (segment.key, segment.folder_name):
            return segment
    raise ConfigError(f"--only {name}: the study has no such segment; `study plan` and the folder's names show them")


class _Board:
    """Lines of what happens, and below them, on a terminal, a table that is drawn anew."""

    def __init__(self, graph: Graph, folder: object) -> None:
        import sys
        import time

        self._graph, self._folder = graph, folder
        self._live, self._height, self._drawn = sys.stdout.isatty(), 0, 0.0
        self._clock = time.monotonic

    def say(self, line: str) -> None:
        self.clear()
        print(line, flush=True)

    def clear(self) -> None:
        if self._height:
            print(f"\x1b[{self._height}A\x1b[J", end="")
            self._height = 0

    def tick(self, running: Sequence[Segment]) -> None:
        from megatron_vlm.study.folder import StudyFolder
        from megatron_vlm.study.tables import describe_status

        if not self._live or self._clock() - self._drawn < 2.0:
            return
        assert isinstance(self._folder, StudyFolder)
        lines = list(describe_status(self._graph, self._folder))
        self.clear()
        print("\n".join(lines), flush=True)
        self._height, self._drawn = len(lines), self._clock()


def _status(args: argparse.Namespace, graph: Graph) -> int:
    from megatron_vlm.study.folder import StudyFolder
    from megatron_vlm.study.tables import describe_status

    print("\n".join(describe_status(graph, StudyFolder(graph.study.folder))))
    return 0


def _report(args: argparse.Namespace, graph: Graph) -> int:
    from megatron_vlm.study.folder import StudyFolder
    from megatron_vlm.study.report import write_report

    folder = StudyFolder(graph.study.folder)
    out = args.out or folder.root / "report"
    for path in write_report(graph, folder, out):
        print(f"wrote {path}")
    return 0
