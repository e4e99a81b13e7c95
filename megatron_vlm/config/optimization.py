"""Optimiser, learning-rate schedule and length of the run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW. Norm gains, biases and other vectors have no weight decay."""

    adam_beta1: float = 0.9
    adam_beta2: float = 0.95
    adam_eps: float = 1e-8
    weight_decay: float = 0.033
    clip_grad: float = 1.0
    #: weight of logsumexp(logits)^2 in the loss
    z_loss: float = 0.0
    #: module (language, vision, projector) -> factor on the learning rate
    lr_mult: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class ScheduleConfig:
    """Length, batch and learning rate."""

    micro_batch_size: int = 1
    global_batch_size: int = 8
    #: packs of a step at the start of the run; the batch then grows by `rampup_batch_increment` at equal distances until
    #: `rampup_packs` packs were trained on. null: no ramp
    rampup_batch_start: int | None = None
    rampup_batch_increment: int = 1
    rampup_packs: int = 0
    #: length of the run in positions (packs * sequence_length), rounded up to whole steps; or in steps
    train_tokens: int | None = None
    train_steps: int | None = None
    #: instead of these: source -> passes over its documents, for a run of one stage of constant weights
    train_epochs: dict[str, float] = field(default_factory=dict)
    lr: float = 1e-3
    min_lr: float = 1e-5
    warmup_steps: int = 0
    decay: Literal["cosine", "linear", "wsd", "constant"] = "cosine"
    #: steps after which the run's own decay is at its end; null: the whole run. Runs of different lengths that begin alike
    #: have one law so
    decay_steps: int | None = None
    #: end before this step with a checkpoint, as the first part of a run whose rest comes later (checkpoint.resume); rates
    #: and shares are those of the whole run
    exit_step: int | None = None
    #: wsd: the share of the run at its end over which the learning rate falls to the minimum
    wsd_decay_share: float = 0.2
    seed: int = 1234
