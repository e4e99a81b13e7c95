"""Runs the segments of a study as processes of the trainer, several at once, again where they fail, until all are done."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from megatron_vlm.config.loading import to_yaml
from megatron_vlm.errors import UserError
from megatron_vlm.study.folder import StudyFolder
from megatron_vlm.study.segments import Graph, Segment, run_config

#: of the trainer: asked to stop, and saved
SAVED_ON_SIGNAL = 75
_POLL_S = 0.2


@dataclass(frozen=True)
class Resources:
    """What a study may use.

    `jobs` segments at once; each is `processes` ranks (above 1 under torchrun). A segment that fails is begun again, from
    its last checkpoint, up to `attempts` times in all.
    """

    jobs: int = 1
    processes: int = 1
    attempts: int = 3


@dataclass
class _Running:
    segment: Segment
    process: subprocess.Popen[bytes]
    begun: float
    attempt: int


@dataclass
class Outcome:
    """Segments by how they ended; `skipped` come after one that failed."""

    done: list[Segment] = field(default_factory=list)
    failed: list[Segment] = field(default_factory=list)
    skipped: list[Segment] = field(default_factory=list)
    stopped: bool = False


def needed(graph: Graph, folder: StudyFolder) -> list[Segment]:
    """What has to be run, in order: segments that are not done and that one of the points needs."""
    wanted: set[str] = set()

    def want(segment: Segment | None) -> None:
        if segment is None or segment.key in wanted or folder.is_done(segment):
            return
        wanted.add(segment.key)
        want(segment.parent)

    for leaf in graph.leaves:
        for segment in (leaf.end, leaf.before, leaf.finetuned, leaf.after):
            want(segment)
    return [segment for segment in graph.segments if segment.key in wanted]


class Executor:
    """
    Args:
        say: takes lines of what happened.
        tick: called now and then while something runs, with the segments that do.
    """

    def __init__(
        self,
        graph: Graph,
        folder: StudyFolder,
        resources: Resources,
        say: Callable[[str], None],
        tick: Callable[[Sequence[Segment]], None] = lambda running: None,
    ) -> None:
        self.graph, self.folder, self.resources, self.say, self.tick = graph, folder, resources, say, tick
        self._running: dict[str, _Running] = {}
        self._attempts: dict[str, int] = {}
        self._asked = False

    def run(self, only: Segment | None = None) -> Outcome:
        """Until nothing is left that can be done. `only`: one segment, whose parent is done.

        SIGINT and SIGTERM are passed on: what runs saves and ends, and a later run goes on from there.

        Raises UserError where another process runs the study, or `only` comes before its time.
        """
        if only is not None:
            if only.parent is not None and not self.folder.is_done(only.parent):
                raise UserError(f"{only.name}: {only.parent.name} ({only.parent.folder_name}), where it begins, is not done")
            return self._run([] if self.folder.is_done(only) else [only])
        with self.folder.alone():
            return self._run(needed(self.graph, self.folder))

    def _run(self, waiting: list[Segment]) -> Outcome:
        outcome, lost = Outcome(), set[str]()
        kept = {number: signal.signal(number, self._stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            while waiting or self._running:
                for segment in [] if self._asked else list(waiting):
                    if segment.parent is not None and segment.parent.key in lost:
                        waiting.remove(segment)
                        lost.add(segment.key)
                        outcome.skipped.append(segment)
                        self.say(f"{segment.name}: left out, {segment.parent.name} failed")
                    elif len(self._running) < self.resources.jobs and self._ready(segment):
                        waiting.remove(segment)
                        self._start(segment)
                if self._asked:
                    waiting.clear()
                time.sleep(_POLL_S)
                self.tick([running.segment for running in self._running.values()])
                for running in list(self._running.values()):
                    code = running.process.poll()
                    if code is not None:
                        self._ended(running, code, waiting, outcome, lost)
        finally:
            for running in self._running.values():
                running.process.kill()
                running.process.wait()
                self.folder.stop(running.segment)
            for number, handler in kept.items():
                signal.signal(number, handler)
        outcome.stopped = self._asked
        return outcome

    def _ready(self, segment: Segment) -> bool:
        return segment.parent is None or self.folder.is_done(segment.parent)

    def _start(self, segment: Segment) -> None:
        self.folder.of(segment).mkdir(parents=True, exist_ok=True)
        command, config = segment_command(segment, self.folder, self.resources.processes)
        (self.folder.of(segment) / "config.yaml").write_text(config, encoding="utf-8")
        attempt = self._attempts[segment.key] = self._attempts.get(segment.key, 0) + 1
        threads = max(1, (os.cpu_count() or 1) // (self.resources.jobs * self.resources.processes))
        with open(self.folder.of(segment) / "log.txt", "ab") as log:
            log.write(f"--- attempt {attempt}: {' '.join(command)}\n".encode())
            log.flush()
            process = subprocess.Popen(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env={"OMP_NUM_THREADS": str(threads), **os.environ},
                start_new_session=True,  # a Ctrl-C is passed on by us, once
            )
        self.folder.begin(segment, config, attempt, process.pid)
        self._running[segment.key] = _Running(segment, process, time.monotonic(), attempt)
        self.say(f"{segment.name}: begun" + (f", attempt {attempt}" if attempt > 1 else ""))

    def _ended(self, running: _Running, code: int, waiting: list[Segment], outcome: Outcome, lost: set[str]) -> None:
        segment, seconds = running.segment, time.monotonic() - running.begun
        del self._running[segment.key]
        if code == 0:
            self.folder.finish(segment, seconds)
            outcome.done.append(segment)
            self.say(f"{segment.name}: done in {seconds:.0f} s")
        elif self._asked:
            self.folder.stop(segment)
            self.say(f"{segment.name}: stopped" + (", saved" if code == SAVED_ON_SIGNAL else f" (exit code {code})"))
        elif running.attempt < self.resources.attempts and code != 2:
            self.folder.stop(segment)
            waiting.insert(0, segment)
            self.say(f"{segment.name}: failed with exit code {code} after {seconds:.0f} s; begun again")
        else:  # 2 is a refusal: the same again
            self.folder.fail(segment, code, running.attempt)
            outcome.failed.append(segment)
            lost.add(segment.key)
            self.say(f"{segment.name}: FAILED with exit code {code}, see {self.folder.of(segment) / 'log.txt'}")

    def _stop(self, number: int, frame: object) -> None:
        self._asked = True
        for running in self._running.values():
            running.process.send_signal(signal.SIGTERM)


def segment_command(segment: Segment, folder: StudyFolder, processes: int) -> tuple[list[str], str]:
    """The command of a segment, and the configuration that it reads (of an evaluation, for people)."""
    place = folder.of(segment)
    if segment.kind == "evaluate":
        assert segment.parent is not None
        return [*_launcher(processes), *_evaluation(segment, folder)], to_yaml(segment.config)
    parent = segment.parent
    begins_with = None if parent is None else folder.run(parent)
    config = run_config(segment, folder.run(segment), begins_with if segment.kind == "finetune" else None)
    command = [*_launcher(processes), "train", "--config", str(place / "config.yaml")]
    if segment.kind != "finetune" and parent is not None and folder.checkpoint(segment) is None:
        command += ["--resume", str(folder.run(parent) / "checkpoints" / f"step-{parent.end_step:08d}")]
    return command, to_yaml(config)


def _evaluation(segment: Segment, folder: StudyFolder) -> list[str]:
    assert segment.parent is not None
    evaluate = segment.points[0].evaluate
    command = ["evaluate", str(folder.run(segment.parent)), "--output", str(folder.results(segment))]
    for task in evaluate.tasks:
        command += ["--task", task]
    for name, pattern in evaluate.naming.items():
        command += ["--naming", f"{name}={pattern}"]
    if evaluate.naming:
        command += ["--name-key", evaluate.naming_key, "--template", evaluate.template]
    for control in evaluate.controls if evaluate.tasks else ():
        command += ["--control", control]
    return [*command, "--limit", str(evaluate.limit)]


def _launcher(processes: int) -> list[str]:
    if processes == 1:
        return [sys.executable, "-m", "megatron_vlm.cli.main"]
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return [*run, "-m", "megatron_vlm.cli.main"]
