"""The line of metrics.jsonl that a step leaves."""

from __future__ import annotations

from typing import Any

from megatron_vlm.training.step import StepResult
from megatron_vlm.training.step_data import StepBatches


def step_record(step: StepBatches, stage: str, result: StepResult, rate: float, seconds: float) -> dict[str, Any]:
    """Numbers of the step itself, and of the run's mixture after it, counted from the run's start."""
    report = step.plan.report
    filled = sum(report.source_tokens.values())
    faults = step.loader_faults
    return {
        "kind": "train",
        "step": step.plan.step,
        "stage": stage,
        "loss": result.loss,
        "losses": result.losses,
        "trained_tokens": result.tokens,
        "z_loss": result.z_loss,
        "grad_norm": result.grad_norm,
        "lr": rate,
        "pictures": step.shape.pictures,
        "documents": step.plan.digest,
        "planned_visual_share": report.planned_visual_share,
        "achieved_visual_share": report.achieved_visual_share,
        "padding_share": report.padded / max(1, filled + report.padded),
        "tokens": filled + report.padded,
        "source_tokens": report.source_tokens,
        "source_visual": report.source_visual,
        "source_documents": report.source_documents,
        "source_epochs": report.source_epochs,
        "planned_tokens": report.planned_tokens,
        "seconds": seconds,
        "data_wait_seconds": step.waited,
        **({"loader_workers_replaced": faults.died + faults.hung} if faults.died + faults.hung else {}),
    }
