"""What follows a bad step: it is recorded with its documents; then the run goes on, goes back, or ends with a report."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from megatron_vlm.config.run import RunConfig
from megatron_vlm.data.documents import Span
from megatron_vlm.data.named_documents import documents_by_source, named_documents
from megatron_vlm.training.engine import Engine
from megatron_vlm.training.faults.bad_steps import BadStepDetector
from megatron_vlm.training.faults.exit_codes import EXIT_BAD_STEPS
from megatron_vlm.training.faults.rewind import last_checkpoint, rewind
from megatron_vlm.training.step import StepResult

#: takes a record of metrics.jsonl
Write = Callable[[dict[str, Any]], None]
Say = Callable[[str], None]


class BadStepResponse:
    """The run's memory of good and bad steps, and what it does about a bad one. The same on every rank."""

    def __init__(self, config: RunConfig, sources: Sequence[str]) -> None:
        self.config, self.sources = config, tuple(sources)
        self.detector = BadStepDetector(config.faults)

    def after_step(
        self,
        engine: Engine,
        step: int,
        result: StepResult,
        packs: Sequence[Sequence[Span]],
        write: Write,
        say: Say,
        ours: Callable[[int], bool],
    ) -> int | None:
        """Every rank calls it after step `step` of the documents of `packs`. Returns the exit code if the run ends here.

        The data goes on after `step` in any case. `write` and `say` are rank 0's log; `ours` as of `last_checkpoint`.
        """
        if result.fault is None:
            self.detector.count_good(result.loss)
            return None
        self.detector.count_bad(step)
        ends = self.config.faults.on_bad_step == "stop" or self.detector.too_many(step)
        record: dict[str, Any] = {"action": "stop"} if ends else self._go_on(engine, step, ours)
        documents = documents_by_source(packs, self.sources)
        write(
            {
                "kind": "fault",
                "step": step,
                "reason": result.fault,
                "loss": result.loss if math.isfinite(result.loss) else None,
                "grad_norm": result.grad_norm if math.isfinite(result.grad_norm) else None,
                **record,
                "documents": documents,
            }
        )
        say(
            f"bad step {step}: {result.fault} (loss {result.loss:.4f}, gradient norm {result.grad_norm:.4f}); "
            f"{_SAID[record['action']].format(**record)}; documents: {named_documents(documents)}"
        )
        if not ends:
            return None
        say(self._report(step))
        return EXIT_BAD_STEPS

    def _go_on(self, engine: Engine, step: int, ours: Callable[[int], bool]) -> dict[str, Any]:
        place = last_checkpoint(self.config, step, ours) if self.config.faults.on_bad_step == "rewind" else None
        if place is None:  # also before the first checkpoint of a run that would rewind
            return {"action": "skip"}
        run = rewind(engine, self.config, place)
        self.detector.load_history(run["bad_steps"])
        self.detector.enter_stage(engine.stage)
        return {"action": "rewind", "rewound_to": int(run["step"])}

    def _report(self, step: int) -> str:
        faults, bad = self.config.faults, [n for n in self.detector.bad if n > step - self.config.faults.bad_step_window]
        many = f"{len(bad)} of the last {faults.bad_step_window} steps were bad" if len(bad) > 1 else "a bad step"
        return (
            f"the run ends at step {step}: {many} (step {', '.join(str(n) for n in bad)}; at most faults.max_bad_steps "
            f"{faults.max_bad_steps} are borne, faults.on_bad_step is {faults.on_bad_step}). Their documents are in "
            f"{self.config.logging.directory}/metrics.jsonl, kind fault. Where grad_norm grew for long before, lower "
            f"schedule.lr or lengthen schedule.warmup_steps; where it jumped in one step, look at the documents"
        )

    def state(self) -> dict[str, Any]:
        return self.detector.state()

    def load(self, state: dict[str, Any]) -> None:
        self.detector.load(state)


_SAID = {
    "skip": "its update is left out",
    "rewind": "back to the parameters of step {rewound_to}, data goes on after it",
    "stop": "no update was made",
}
