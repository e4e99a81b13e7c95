"""The run: stages, steps, checkpoints, until the last step or a request to stop."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from megatron_vlm.config.checks import check
from megatron_vlm.config.loading import to_yaml
from megatron_vlm.config.run import RunConfig
from megatron_vlm.data.micro_batch import MicroBatch, MicroBatchMaker
from megatron_vlm.data.opening import open_sources, token_counts
from megatron_vlm.data.packing import PackPlanner
from megatron_vlm.data.tokenizer import Tokenizer
from megatron_vlm.errors import UserError
from megatron_vlm.models.language import padded_vocab_size
from megatron_vlm.ops.pack_balance import balance_packs
from megatron_vlm.parallel import topology as topology_module
from megatron_vlm.parallel.topology import Topology
from megatron_vlm.planning.flops import BatchShape, step_flops
from megatron_vlm.training import checkpoint as checkpoints
from megatron_vlm.training.engine import Engine
from megatron_vlm.training.learning_rate import learning_rate_law
from megatron_vlm.training.metrics import MetricsLog, Progress
from megatron_vlm.training.parameter_groups import MODULES
from megatron_vlm.training.signals import EXIT_SAVED_ON_SIGNAL, StopRequest
from megatron_vlm.training.step import StepResult, train_step
from megatron_vlm.training.validation import Validation


@dataclass(frozen=True)
class Outcome:
    """How a run ended: the exit code, the steps made in all, the last checkpoint."""

    exit_code: int
    step: int
    checkpoint: Path | None


class Run:
    """One process's part of a run. Build it on every rank, call `train`."""

    def __init__(self, config: RunConfig) -> None:
        """
        Raises:
            ConfigError, DataError, UserError: what cannot run is refused here, before the first step.
        """
        check(config, topology_module.world_size_from_environment())
        self.config = config
        self.tokenizer = Tokenizer.load(Path(config.data.tokenizer))
        self.tokens = token_counts(self.tokenizer)
        sources = open_sources(config.data.sources, self.tokenizer, config.model.image_tokens)
        validation = open_sources(config.data.validation, self.tokenizer, config.model.image_tokens)
        self.planner = PackPlanner(sources, config.curriculum.stages, config.data, config.schedule.seed)
        self.topology: Topology = topology_module.initialize(config.parallel, config.schedule.seed)
        self.engine = Engine(config, self.tokens, self.topology)
        self.maker = MicroBatchMaker(
            list(sources.values()),
            config.data.sequence_length,
            self.tokens,
            config.model.image_tokens,
            config.model.vision.image_size,
            decode_pictures=self.topology.on_first_stage,
            pin_memory=self.topology.device.type == "cuda",
        )
        self.validation = Validation(config, self.topology, self.tokens, validation)
        self.rate = learning_rate_law(config)
        self.step = 0
        self.saver = checkpoints.Saver(config, self.topology.device, self.say)
        self._vocab = padded_vocab_size(self.tokens.vocab_size, config.model.language.vocab_pad_multiple)

    @property
    def is_writer(self) -> bool:
        return self.topology.rank == 0

    def say(self, text: str) -> None:
        if self.is_writer:
            print(text, flush=True)

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
        self.step = int(run["step"])
        self.planner.load(run["data"])
        self._enter_stage()
        checkpoints.load_training(self.engine, self.config, source, run)
        self.say(f"resumed from {source} at step {self.step}")

    def _enter_stage(self) -> bool:
        """Move planner and engine to the stage of the coming step. Returns whether a new stage began."""
        stage = self.config.stage_of(self.step)
        began = stage != self.engine.stage
        self.planner.enter_stage(stage)
        self.engine.enter_stage(stage)
        return began

    # -- steps ---------------------------------------------------------------------------------------------------

    def next_batches(self) -> tuple[list[MicroBatch], BatchShape]:
        """This rank's micro-batches of the coming step, and the shape of the whole global batch."""
        schedule = self.config.schedule
        packs = self.planner.next_packs(schedule.global_batch_size)
        sources = list(self.planner.sources.values())
        shapes = []
        for pack in packs:
            pictures = sum(int(sources[span.source].pictures[span.document]) for span in pack if span.start == 0)
            shapes.append(BatchShape(self.config.data.sequence_length, tuple(span.length for span in pack), pictures))
        mine = [packs[number] for number in self._share(shapes)]
        micro = schedule.micro_batch_size
        batches = [self.maker(mine[first : first + micro]).to(self.topology.device) for first in range(0, len(mine), micro)]
        whole = BatchShape(
            sum(shape.positions for shape in shapes),
            tuple(length for shape in shapes for length in shape.document_lengths),
            sum(shape.pictures for shape in shapes),
        )
        return batches, whole

    def _share(self, shapes: list[BatchShape]) -> list[int]:
        """The packs of a global batch that this data-parallel rank computes, by number: every rank gets as many, and of
        like cost in all, so that none waits for another. Costs are their operations, the encoder's included."""
        ranks = self.topology.data_size
        if ranks == 1:
            return list(range(len(shapes)))
        frozen = self.config.curriculum.stages[self.engine.stage].freeze
        costs = np.array([step_flops(self.config.model, self._vocab, shape, frozen) for shape in shapes], np.float64)
        dealt = balance_packs(costs, ranks, len(shapes) // ranks)
        return [int(number) for number in dealt.order[0, self.topology.data_rank]]

    def _record(self, result: StepResult, rate: float, shape: BatchShape, seconds: float, waited: float) -> dict[str, Any]:
        fill, mixture = self.planner.fill, self.planner.mixture
        return {
            "kind": "train",
            "step": self.step,
            "stage": self.config.curriculum.stages[self.engine.stage].name,
            "loss": result.loss,
            "losses": result.losses,
            "trained_tokens": result.tokens,
            "z_loss": result.z_loss,
            "grad_norm": result.grad_norm,
            "lr": rate,
            "pictures": shape.pictures,
            "planned_visual_share": mixture.planned_visual_share,
            "achieved_visual_share": mixture.achieved_visual_share,
            "padding_share": fill.padded / max(1, fill.filled + fill.padded),
            "source_tokens": {name: account.tokens for name, account in mixture.accounts.items()},
            "seconds": seconds,
            "data_wait_seconds": waited,
        }

    def train(self) -> Outcome:
        """Every rank calls it. Returns on all ranks with the same outcome."""
        config = self.config
        self._start()
        log = None
        if self.is_writer:
            folder = Path(config.logging.directory)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
            log = MetricsLog(folder, self.step, config.logging.tensorboard)
            self.say(self._banner())
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
            began = self.step < config.total_steps and self._enter_stage() and self.step > started_at
            progress.pause()
            if began:
                name = config.curriculum.stages[self.engine.stage].name
                self.say(f"stage {name!r} begins at step {self.step}")
            # a border is measured on both sides: the last line of the old stage and the first of the new
            if self._due(config.logging.eval_interval) or (began and config.logging.eval_interval):
                self._evaluate(log)
            done = self.step >= config.total_steps
            self.saver.poll()
            asked = self._anyone_asked(stop)
            wanted = (every and self.step % every == 0) or (began and config.checkpoint.save_at_stage_border)
            if self.step > started_at and (done or asked or wanted):
                self.save(last=done or asked)
            if asked and not done:
                saved = "saved" if self.step > started_at else "nothing new to save"
                self.say(f"asked to stop: {saved} at step {self.step}")
                return Outcome(EXIT_SAVED_ON_SIGNAL, self.step, self.saver.last)
            if done:
                return Outcome(0, self.step, self.saver.last)
            progress.unpause()
            self._one_step(log, progress)

    def _due(self, interval: int) -> bool:
        return interval > 0 and (self.step % interval == 0 or self.step == self.config.total_steps)

    def _one_step(self, log: MetricsLog | None, progress: Progress) -> None:
        config = self.config
        begun = time.perf_counter()
        batches, shape = self.next_batches()
        waited = time.perf_counter() - begun
        rate = self.rate(self.step)
        result = train_step(self.engine, batches, self.topology, rate, self.step)
        freeze = [name for name in MODULES if name in config.curriculum.stages[self.engine.stage].freeze]
        progress.add(shape.positions, step_flops(config.model, self._vocab, shape, freeze), waited)
        if log is not None:
            log.write(self._record(result, rate, shape, time.perf_counter() - begun, waited))
        if not np.isfinite(result.loss):
            raise UserError(
                f"the loss of step {self.step} is {result.loss}: lower schedule.lr, lengthen schedule.warmup_steps, or "
                f"resume from an earlier checkpoint in {checkpoints.checkpoint_folder(config)}"
            )
        self.step += 1
        if self.step % config.logging.log_interval == 0 or self.step == config.total_steps:
            rates = progress.rates()
            if log is not None:
                log.write({"kind": "speed", "step": self.step, **rates})
                stage = config.curriculum.stages[self.engine.stage].name
                progress.line(self.step, stage, result.losses, rates, rate, result.grad_norm)

    def _anyone_asked(self, stop: StopRequest) -> bool:
        flag = torch.tensor([1.0 if stop.received else 0.0], device=self.topology.device)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return bool(flag.item())

    def _evaluate(self, log: MetricsLog | None) -> None:
        losses = self.validation.measure(self.engine)
        if log is not None and losses:
            log.write({"kind": "eval", "step": self.step, "losses": losses})
            shown = " ".join(f"{name} {value:.3f}" for name, value in losses.items())
            print(f"step {self.step} | held out: {shown}", flush=True)

    def save(self, last: bool = True) -> None:
        """Save the moment before step `self.step`; the `last` one is on disk when this returns."""
        extra = {"tokenizer_fingerprint": self.tokenizer.fingerprint}
        self.saver.save(self.engine, self.step, self.planner.state(), extra, last)

    def _banner(self) -> str:
        config, parallel, top = self.config, self.config.parallel, self.topology
        counts = {
            name: sum(p.numel() for c in self.engine.chunks for n, p in c.named_parameters() if prefix in n)
            for name, prefix in MODULES.items()
        }
        here = ", ".join(f"{name} {count / 1e6:.2f}M" for name, count in counts.items())
        lines = [
            f"{top.world_size} rank(s) on {top.device.type}: TP {top.tensor_size} x PP {top.pipeline_size} x DP "
            f"{top.data_size}{', sequence parallel' if parallel.sequence_parallel else ''}; "
            f"parameters of rank 0: {here}",
            f"{config.total_steps} steps of {config.schedule.global_batch_size} x {config.data.sequence_length} positions",
        ]
        start = 0
        for stage, end in zip(config.curriculum.stages, config.stage_ends(), strict=True):
            sources = ", ".join(f"{name} {weight:g}" for name, weight in stage.sources.items())
            frozen = f"; frozen: {', '.join(stage.freeze)}" if stage.freeze else ""
            lines.append(f"  steps {start} to {end}: {stage.name} ({sources}, by {stage.measure}{frozen})")
            start = end
        return "\n".join(lines)


def train(config: RunConfig) -> Outcome:
    """Build and run one training process; the process groups are left at the end."""
    run = Run(config)
    try:
        return run.train()
    finally:
        topology_module.shutdown()
