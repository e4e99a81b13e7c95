"""The run: stages, steps, checkpoints, until the last step or a request to stop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from megatron_vlm.config.checks import check
from megatron_vlm.config.curriculum import MODULES
from megatron_vlm.config.loading import to_yaml
from megatron_vlm.config.run import RunConfig
from megatron_vlm.data.broken_pictures import log_line, metrics_record
from megatron_vlm.data.decoding.decoder import decoder_change, with_resolved_decoder
from megatron_vlm.data.documents import DocumentSource
from megatron_vlm.data.opening import open_sources, token_counts
from megatron_vlm.data.tokenizer import Tokenizer
from megatron_vlm.models.language import padded_vocab_size
from megatron_vlm.parallel import topology as topology_module
from megatron_vlm.parallel.topology import Topology
from megatron_vlm.planning.flops import step_flops
from megatron_vlm.training import checkpoint as checkpoints
from megatron_vlm.training.banner import banner
from megatron_vlm.training.choices import run_choices
from megatron_vlm.training.engine import Engine
from megatron_vlm.training.faults.exit_codes import EXIT_REPLICAS_DIFFER
from megatron_vlm.training.faults.pulse import Pulse
from megatron_vlm.training.faults.replicas import compare_replicas, replicas_message
from megatron_vlm.training.faults.response import BadStepResponse
from megatron_vlm.training.faults.watchdog import Watchdog
from megatron_vlm.training.freezing import check_freezing
from megatron_vlm.training.kept_features import KeptFeatures
from megatron_vlm.training.learning_rate import learning_rate_law
from megatron_vlm.training.length import with_length
from megatron_vlm.training.metrics import MetricsLog, Progress
from megatron_vlm.training.signals import EXIT_SAVED_ON_SIGNAL, StopRequest
from megatron_vlm.training.step import train_step
from megatron_vlm.training.step_data import StepBatches, StepData
from megatron_vlm.training.step_record import step_record
from megatron_vlm.training.surroundings import as_table, survey
from megatron_vlm.training.validation import Validation, trained_shape


@dataclass(frozen=True)
class Outcome:
    """How a run ended: the exit code, the steps made in all, the last checkpoint."""

    exit_code: int
    step: int
    checkpoint: Path | None


class Run:
    """One process's part of a run. Build it on every rank, call `train`."""

    def __init__(self, config: RunConfig, tasks: Measure | None = None) -> None:
        """
        Args:
            tasks: measures the model every `evaluation.interval` steps and at the end, beside the held-out losses.

        Raises:
            ConfigError, DataError, UserError: what cannot run is refused here, before the first step.
        """
        config = with_length(config)
        check(config, topology_module.world_size_from_environment())
        config = with_resolved_decoder(config)
        self.config, self.tasks = config, tasks
        self.tokenizer = Tokenizer.load(Path(config.data.tokenizer))
        self.tokens = token_counts(self.tokenizer)
        sources = open_sources(config.data.sources, self.tokenizer, config.model.image_tokens)
        validation = open_sources(config.data.validation, self.tokenizer, config.model.image_tokens)
        self.features = KeptFeatures(config, sources)
        # where ranks are watched, the watch is to end what hangs, and to leave alone what may take long
        waits = max(config.parallel.timeout_s, config.faults.long_timeout_s * bool(config.faults.timeout_s))
        self.topology: Topology = topology_module.initialize(config.parallel, config.schedule.seed, waits)
        self.engine = Engine(config, self.tokens, self.topology)
        check_freezing(config, sources, self.engine.chunks, self.topology.device)
        self._vocab = padded_vocab_size(self.tokens.vocab_size, config.model.language.vocab_pad_multiple)
        self.data = StepData(
            config, sources, self.tokens, self.topology, self._vocab, self.say_anywhere, self.features.prefixes
        )
        self.validation = Validation(config, self.topology, self.tokens, validation)
        self.rate = learning_rate_law(config)
        self.bad_steps = BadStepResponse(config, list(sources))
        self.pulse = Pulse(config.faults)
        self._first_of_stage = True
        #: why the data is at its end; empty as long as it is not
        self._ended = ""
        #: evaluation, tasks, save -> the step at which it was last done
        self._done_at: dict[str, int] = {}
        self.step = 0
        self.saver = checkpoints.Saver(config, self.topology.device, self.say)

    @property
    def is_writer(self) -> bool:
        return self.topology.rank == 0

    def say(self, text: str) -> None:
        if self.is_writer:
            print(text, flush=True)

    def say_anywhere(self, text: str) -> None:
        """What one rank alone knows."""
        print(f"rank {self.topology.rank}: {text}", flush=True)

    # -- start ---------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        source = checkpoints.choose_checkpoint(self.config)
        if source is None:
            if self.config.checkpoint.start_from is not None:
                begun_with = checkpoints.start_from(self.engine, self.config)
                self.say(f"a new run with the {self.config.checkpoint.start_with.replace('_', ' ')} of {begun_with}")
            self._enter_stage()
            return
        run = checkpoints.read_run_file(source)
        self.step = self.saver.resumed_at = int(run["step"])
        for line in self.data.load(run["data"], run["config"], self._open_sources):
            self.say(f"curriculum changed: {line}")
        checkpoints.go_on(self.engine, self.config, source, run)
        self._enter_stage()
        self.bad_steps.load(run["bad_steps"])
        self.say(f"resumed from {source} at step {self.step}")
        if change := decoder_change(run["config"], self.config.data.pictures):
            self.say(change)

    def _open_sources(self, prefixes: dict[str, str]) -> dict[str, DocumentSource]:
        return open_sources(prefixes, self.tokenizer, self.config.model.image_tokens)

    def _enter_stage(self) -> bool:
        """Move the engine to the stage of the coming step. Returns whether a new stage began."""
        stage = self.config.stage_of(self.step)
        began = stage != self.engine.stage
        self.engine.enter_stage(stage)
        self.bad_steps.detector.enter_stage(stage)
        self.features.compare_weights(self.engine)
        return began

    # -- steps ---------------------------------------------------------------------------------------------------

    def next_step(self) -> StepBatches | None:
        """The coming step's data; None where it is at its end."""
        return self.data.next(self._loaded)

    def _loaded(self) -> None:
        """This rank has its data; from here on it waits for others alone."""
        self.pulse.enter(self.step, "forward, backward, update", long=self._first_of_stage or self.engine.graphs.coming)

    def train(self) -> Outcome:
        """Every rank calls it. Returns on all ranks with the same outcome.

        If another rank stops, dies or fails, the process ends here with EXIT_RANK_LOST (`faults.watchdog`).
        """
        watchdog = Watchdog(self.config.faults, self.pulse)
        watchdog.start()
        try:
            return self._train()
        except BaseException as error:
            watchdog.failed(error)
            raise
        finally:
            watchdog.stop()
            self.data.close()

    def _train(self) -> Outcome:
        config = self.config
        self._start()
        log = None
        if self.is_writer:
            folder = Path(config.logging.directory)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
            surroundings = as_table([*survey(), *run_choices(self.engine)])
            (folder / "environment.txt").write_text(surroundings + "\n", encoding="utf-8")
            self.say(surroundings)
            log = MetricsLog(folder, self.step, config.logging.tensorboard)
            self.say(banner(config, self.topology, self.engine.chunks))
            for line in self.features.lines():
                self.say(line)
        stop = StopRequest()
        progress = Progress(config.total_steps, config.logging.peak_flops, self.topology.world_size)
        try:
            return self._loop(log, stop, progress)
        finally:
            stop.restore()
            self.saver.close()
            if log is not None:
                log.close()

    def _loop(self, log: MetricsLog | None, stop: StopRequest, progress: Progress) -> Outcome:
        config = self.config
        started_at = self.step
        every = config.checkpoint.save_interval
        while True:
            # where a stage begins, moments are gathered and the optimiser is built anew
            changes = self.step < config.end_step and config.stage_of(self.step) != self.engine.stage
            self.pulse.enter(self.step, "between steps", long=changes)
            began = self.step < config.end_step and self._enter_stage() and self.step > started_at
            progress.pause()
            if began:
                self._first_of_stage = True
                name = config.curriculum.stages[self.engine.stage].name
                self.say(f"stage {name!r} begins at step {self.step}")
            # a border is measured on both sides: the last line of the old stage and the first of the new
            # (a checkpoint's step was measured before it was saved)
            measured = self.step == started_at and self.step > 0
            due = self._due(config.logging.eval_interval) or (began and config.logging.eval_interval)
            if not measured and due and self._first_time("evaluation"):
                self._evaluate(log)
            due = self.tasks is not None and (self._due(config.evaluation.interval) or self._at_end())
            if not measured and due and self._first_time("tasks"):
                self._answer_tasks(log)
            done = self._at_end()
            if self.saver.pending:
                self.pulse.enter(self.step, "save", long=True)  # rank 0 may publish it, and others wait for that
                self.saver.poll()
            asked = self._anyone_asked(stop)
            wanted = (every and self.step % every == 0) or (began and config.checkpoint.save_at_stage_border)
            saves = self.step > started_at and (done or asked or wanted)
            if self._replicas_differ(saves):
                return Outcome(EXIT_REPLICAS_DIFFER, self.step, self.saver.last)
            if saves and (self._first_time("save") or not self._is_saved()):
                self.save(last=done or asked)
            if asked and not done:
                saved = "saved" if self.step > started_at else "nothing new to save"
                self.say(f"asked to stop: {saved} at step {self.step}")
                return Outcome(EXIT_SAVED_ON_SIGNAL, self.step, self.saver.last)
            if done:
                return Outcome(0, self.step, self.saver.last)
            progress.unpause()
            ended = self._one_step(log, progress)
            if ended is not None:
                return Outcome(ended, self.step, self.saver.last)

    def _replicas_differ(self, saves: bool) -> bool:
        every = self.config.faults.check_replicas_interval
        if self.topology.replica_size == 1 or not every or not (saves or (self.step and self.step % every == 0)):
            return False
        found = compare_replicas(self.engine, self.topology)
        if found:
            self.say(replicas_message(self.step, found))
        return bool(found)

    def _due(self, interval: int) -> bool:
        return interval > 0 and (self.step % interval == 0 or self._at_end())

    def _first_time(self, what: str) -> bool:
        """Whether it is not yet done at this step, which is come to again where its data turns out to be at its end."""
        first = self._done_at.get(what) != self.step
        self._done_at[what] = self.step
        return first

    def _is_saved(self) -> bool:
        """Whether a checkpoint of this step is on disk; one that is being written is waited for."""
        self.pulse.enter(self.step, "save", long=True)
        self.saver.finish()
        return self.saver.last == checkpoints.step_folder(checkpoints.checkpoint_folder(self.config), self.step)

    def _one_step(self, log: MetricsLog | None, progress: Progress) -> int | None:
        """Returns the exit code if the run ends with this step."""
        config = self.config
        begun = time.perf_counter()
        self.pulse.enter(self.step, "data", long=self._first_of_stage)
        step = self.next_step()
        if step is None:
            self._ended = self.data.ended
            self.say(f"the run ends at step {self.step}: {self._ended}")
            return None
        shape, policy = step.shape, config.data.pictures.broken
        for broken in step.broken:
            self.say(log_line(broken, self.data.prefixes, self.step, policy))
        if log is not None and step.broken:
            log.write(metrics_record(step.broken, self.data.prefixes, self.step, policy))
        rate = self.rate(self.step)
        result = train_step(self.engine, step.batches, self.topology, rate, judge=self.bad_steps.detector.judge)
        self._first_of_stage = False
        freeze = [name for name in MODULES if name in config.curriculum.stages[self.engine.stage].freeze]
        progress.add(shape.positions, step_flops(config.model, self._vocab, shape, freeze), step.waited)
        if log is not None:
            name = config.curriculum.stages[self.engine.stage].name
            log.write(step_record(step, name, result, rate, time.perf_counter() - begun))
        if result.fault is not None:
            self.pulse.enter(self.step, "bad step", long=True)
            self.saver.finish()  # the checkpoint to go back to may be the one that is being written
        write = log.write if log is not None else lambda record: None
        ours = self.saver.is_of_this_line
        ended = self.bad_steps.after_step(self.engine, self.step, result, step.plan.packs, write, self.say, ours)
        if ended is not None:
            return ended
        self.step += 1
        if self.step % config.logging.log_interval == 0 or self.step == config.end_step:
            rates = progress.rates()
            if log is not None:
                log.write({"kind": "speed", "step": self.step, **rates})
                stage = config.curriculum.stages[self.engine.stage].name
                progress.line(self.step, stage, result.losses, rates, rate, result.grad_norm)
        return None

    def _anyone_asked(self, stop: StopRequest) -> bool:
        flag = torch.tensor([1.0 if stop.received else 0.0], device=self.topology.device)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return bool(flag.item())

    def _evaluate(self, log: MetricsLog | None) -> None:
        self.pulse.enter(self.step, "evaluation", long=True)
        losses = self.validation.measure(self.engine, trained_shape(self.config, self.step))
        if log is not None and losses:
            log.write({"kind": "eval", "step": self.step, "losses": losses})
            shown = " ".join(f"{name} {value:.3f}" for name, value in losses.items())
            print(f"step {self.step} | held out: {shown}", flush=True)

    def _at_end(self) -> bool:
        return self.step >= self.config.end_step or bool(self._ended)

    def _answer_tasks(self, log: MetricsLog | None) -> None:
        assert self.tasks is not None
        self.pulse.enter(self.step, "tasks", long=True)
        scores = dict(self.tasks(self))
        if log is not None:
            log.write({"kind": "tasks", "step": self.step, "scores": scores})
            shown = " ".join(f"{name} {value:.1%}" for name, value in scores.items())
            print(f"step {self.step} | tasks: {shown}", flush=True)

    def save(self, last: bool = True) -> None:
        """Save the moment before step `self.step`; the `last` one is on disk when this returns."""
        self.pulse.enter(self.step, "save", long=True)
        extra = {
            "tokenizer_fingerprint": self.tokenizer.fingerprint,
            "updates": self.engine.updates.state(),
            "bad_steps": self.bad_steps.state(),
        }
        self.saver.save(self.engine, self.step, self.data.state, extra, last)


#: name and value of what is measured of a run's model as it stands, the same on every rank
Measure = Callable[[Run], Iterable[tuple[str, float]]]


def train(config: RunConfig, tasks: Measure | None = None) -> Outcome:
    """Build and run one training process; the process groups are left at the end."""
    run = Run(config, tasks)
    try:
        return run.train()
    finally:
        topology_module.shutdown()
