"""From where to where each number of a configuration may go, taken by itself.

What numbers must be to each other is for the checks beside this file, which may divide by what has passed here.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from megatron_vlm.config.bookkeeping import CheckpointConfig, LoggingConfig
from megatron_vlm.config.curriculum import CurriculumConfig, StageConfig
from megatron_vlm.config.data import DataConfig
from megatron_vlm.config.evaluation import EvaluationConfig
from megatron_vlm.config.faults import FaultConfig
from megatron_vlm.config.loader import LoaderConfig
from megatron_vlm.config.model import LanguageConfig, LoraConfig, ProjectorConfig, VisionConfig
from megatron_vlm.config.optimization import OptimizerConfig, ScheduleConfig
from megatron_vlm.config.parallel import ParallelConfig
from megatron_vlm.config.performance import PerformanceConfig
from megatron_vlm.config.precision import PrecisionConfig
from megatron_vlm.config.run import RunConfig


@dataclass(frozen=True)
class Range:
    """Finite numbers from `least` to `most`.

    Attributes:
        above: `least` itself is left out.
        below: `most` itself is left out.
        example: a number to try where the nearest one is left out; None: the field's default.
        why: what is said besides.
    """

    least: float
    most: float = math.inf
    above: bool = False
    below: bool = False
    example: float | None = None
    why: str = ""

    def holds(self, value: float) -> bool:
        if not math.isfinite(value):
            return False
        lower = value > self.least if self.above else value >= self.least
        return lower and (value < self.most if self.below else value <= self.most)

    def wanted(self, default: Any, finite: bool) -> str:
        """What a number must be, in words; `finite`: numbers that are not are worth a word."""
        words = f"{'above' if self.above else 'at least'} {self.least:g}"
        if math.isfinite(self.most):
            words += f" and {'below' if self.below else 'at most'} {self.most:g}"
        elif finite:
            words += " and finite"
        example = self.example if self.example is not None else default
        if (self.above or self.below) and isinstance(example, (int, float)):
            words += f", such as {example:g}"
        return f"{words}; {self.why}" if self.why else words


SIZE = Range(1)
COUNT = Range(0)
NOT_NEGATIVE = Range(0)
POSITIVE = Range(0, above=True)
#: of a whole, and not nothing
SHARE = Range(0, 1, above=True)
#: of what is there a part is taken off, and never all
DECAY = Range(0, 1, below=True)

_LANGUAGE = {
    "num_layers": SIZE,
    "hidden_size": SIZE,
    "num_attention_heads": SIZE,
    "num_query_groups": SIZE,
    "kv_channels": SIZE,
    "ffn_hidden_size": SIZE,
    "norm_epsilon": POSITIVE,
    "rotary_base": SIZE,
    "rotary_percent": SHARE,
    "rope_scaling_factor": Range(1, why="or null"),
    "embedding_scale": POSITIVE,
    "dropout": DECAY,
    "vocab_pad_multiple": SIZE,
    "init_std": Range(0, above=True, why="or null: 1 / sqrt(fan_in) of each matrix"),
}
_VISION = {
    "image_size": SIZE,
    "patch_size": SIZE,
    "num_layers": Range(0, why="0: patches go to the projector as embedded"),
    "hidden_size": SIZE,
    "num_attention_heads": SIZE,
    "ffn_hidden_size": SIZE,
    "norm_epsilon": POSITIVE,
    "pixel_mean": Range(0, 1),
    "pixel_std": Range(0, above=True, example=0.5, why="pixels are divided by it"),
    "register_tokens": COUNT,
    "skip_last_layers": COUNT,
}
_STAGE = {
    "until": Range(0, 1, above=True, example=0.5, why="it is a share of the run"),
    "until_tokens": Range(1, why="or the stage ends before it begins"),
    "until_steps": Range(1, why="or the stage ends before it begins"),
    "sources": NOT_NEGATIVE,
    "sources_from": NOT_NEGATIVE,
    "ramp_share": Range(0, 1, above=True, why="it is a share of the stage"),
    "sequence_length": SIZE,
    "micro_batch_size": SIZE,
    "global_batch_size": SIZE,
    "image_size": SIZE,
    "image_pool": SIZE,
    "loss_weights": NOT_NEGATIVE,
    "rewarm_steps": COUNT,
    "rewarm_lr": Range(0, above=True, example=1e-3, why="or null: schedule.lr"),
    "min_lr": NOT_NEGATIVE,
}

#: class of a section -> field -> what its number, each of its numbers or each value of its map must be
RANGES: dict[type[Any], dict[str, Range]] = {
    LanguageConfig: _LANGUAGE,
    VisionConfig: _VISION,
    ProjectorConfig: {"hidden_size": SIZE, "pixel_shuffle": SIZE},
    LoraConfig: {"rank": COUNT, "alpha": POSITIVE},
    DataConfig: {
        "sequence_length": SIZE,
        "min_piece": SIZE,
        "window_packs": SIZE,
        "max_pictures": SIZE,
        "validation_documents": Range(0, why="0: all"),
    },
    LoaderConfig: {
        "workers": Range(0, why="0: the rank makes its micro-batches itself"),
        "prefetch_steps": Range(1, why="loader.workers 0 makes nothing ahead"),
        "timeout_s": Range(1, why="a worker that starts and reads from a slow disk is not hung; 120 is a good value"),
    },
    StageConfig: _STAGE,
    CurriculumConfig: {"max_epochs": Range(0, above=True, example=1, why="leave it out for any number of passes")},
    ParallelConfig: {
        "tensor_model_parallel_size": SIZE,
        "pipeline_model_parallel_size": SIZE,
        "num_layers_in_first_pipeline_stage": SIZE,
        "num_layers_in_last_pipeline_stage": SIZE,
        "virtual_pipeline_model_parallel_size": SIZE,
        "context_parallel_size": SIZE,
        "timeout_s": SIZE,
    },
    OptimizerConfig: {
        "adam_beta1": DECAY,
        "adam_beta2": DECAY,
        "adam_eps": POSITIVE,
        "weight_decay": NOT_NEGATIVE,
        "clip_grad": Range(0, why="0: nothing is clipped"),
        "z_loss": NOT_NEGATIVE,
        "lr_mult": NOT_NEGATIVE,
    },
    ScheduleConfig: {
        "micro_batch_size": SIZE,
        "global_batch_size": SIZE,
        "rampup_batch_start": SIZE,
        "rampup_batch_increment": SIZE,
        "rampup_packs": COUNT,
        "train_tokens": SIZE,
        "train_steps": SIZE,
        "train_epochs": Range(0, above=True, example=1),
        "lr": POSITIVE,
        "min_lr": NOT_NEGATIVE,
        "warmup_steps": COUNT,
        "decay_steps": Range(1, why="or null"),
        "exit_step": Range(1, why="or null"),
        "wsd_decay_share": Range(0, 1, above=True, why="it is a share of the run"),
    },
    CheckpointConfig: {"save_interval": COUNT, "keep_last": COUNT, "keep_every": COUNT},
    LoggingConfig: {
        "log_interval": SIZE,
        "eval_interval": Range(0, why="0: never"),
        "peak_flops": Range(0, above=True, example=989e12, why="or null"),
    },
    FaultConfig: {
        "spike_deviations": NOT_NEGATIVE,
        "spike_rise": NOT_NEGATIVE,
        "spike_window": SIZE,
        "spike_history": Range(2, why="one step has no deviation"),
        "max_bad_steps": COUNT,
        "bad_step_window": SIZE,
        "timeout_s": NOT_NEGATIVE,
        "long_timeout_s": NOT_NEGATIVE,
        "check_replicas_interval": COUNT,
    },
    EvaluationConfig: {"interval": COUNT, "interval_epochs": NOT_NEGATIVE, "limit": COUNT},
    PrecisionConfig: {"fp8_history": SIZE, "first_layers_in_bf16": COUNT, "last_layers_in_bf16": COUNT},
    PerformanceConfig: {"recompute_layers": SIZE, "cpu_offload_layers": COUNT},
}


def range_problems(config: RunConfig) -> Iterator[str]:
    """Every number that is out of its range, with its field and what it must be."""
    return _of_section(config, "")


def _of_section(section: Any, path: str) -> Iterator[str]:
    ranges = RANGES.get(type(section), {})
    for field in dataclasses.fields(section):
        value, where = getattr(section, field.name), f"{path}{field.name}"
        for place, part in _parts(value, where):
            if dataclasses.is_dataclass(part):
                yield from _of_section(part, f"{place}.")
            elif field.name in ranges and part is not None and not ranges[field.name].holds(part):
                finite = isinstance(part, float)
                shown = f"{part:g}" if finite else part
                yield f"{place}: {shown} must be {ranges[field.name].wanted(field.default, finite)}"


def _parts(value: Any, where: str) -> list[tuple[str, Any]]:
    """What is in a field, each with how messages name it: entries of maps and lists, or the value itself."""
    if isinstance(value, dict):
        return [(f"{where}.{key}", entry) for key, entry in value.items()]
    if isinstance(value, tuple):
        names = [f" ({entry.name})" if isinstance(entry, StageConfig) else "" for entry in value]
        return [(f"{where}.{n}{name}", entry) for n, (name, entry) in enumerate(zip(names, value, strict=True))]
    return [(where, value)]
