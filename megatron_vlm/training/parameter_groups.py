"""Which parameters are trained in which stage, and the optimiser groups that follow from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from megatron_vlm.config.curriculum import MODULES
from megatron_vlm.config.run import RunConfig
from megatron_vlm.models import checkpoint_names
from megatron_vlm.models.lora import is_lora


def plain_name(name: str) -> str:
    """The name inside the model, without the wrappers' `module.`"""
    while name.startswith("module."):
        name = name[len("module.") :]
    return name


def global_name(name: str, parameter: torch.nn.Parameter) -> str:
    """What checkpoints call it, which is the same in every layout: a pipeline stage counts its own layers from 0, and its
    copy of a tied embedding is the output layer's."""
    return getattr(parameter, "global_name", plain_name(name))


def module_of(name: str) -> str:
    """language, vision or projector."""
    name = plain_name(name)
    return next(module for module, prefix in MODULES.items() if name.startswith(prefix))


def frozen_in(name: str, freeze: Sequence[str]) -> bool:
    """Whether a stage's `freeze` list covers the parameter of this `global_name`."""
    name = plain_name(name)
    return any(name.startswith(MODULES.get(entry, entry)) for entry in freeze)


def updated_beside(name: str, config: RunConfig) -> bool:
    """The language model's own parameters where low-rank updates are trained instead of them."""
    return config.model.lora.rank > 0 and module_of(name) == "language" and not is_lora(name)


def held_at_zero(name: str, config: RunConfig) -> bool:
    """Norm biases under `layernorm_gain`: Transformer Engine's norms have one, which stays zero, untrained."""
    return checkpoint_names.held_at_zero(plain_name(name), config.model.language)


def is_trained(name: str, freeze: Sequence[str], config: RunConfig) -> bool:
    """Whether a stage with this `freeze` list trains the parameter of this `global_name`."""
    return not (frozen_in(name, freeze) or held_at_zero(name, config) or updated_beside(name, config))


def training_pattern(name: str, config: RunConfig) -> str:
    """A digit a stage: 1 where the parameter is trained, 0 where it is frozen."""
    if updated_beside(name, config):
        return "0" * len(config.curriculum.stages)
    return "".join("0" if frozen_in(name, stage.freeze) else "1" for stage in config.curriculum.stages)


def group_label(name: str, config: RunConfig) -> str:
    """Parameters with one label share a learning-rate law: the same module, trained in the same stages."""
    return f"{module_of(name)}:{training_pattern(name, config)}"


def bias_correction_factor(updates: int, own_updates: int, beta1: float, beta2: float) -> float:
    """Factor on the learning rate that gives parameters the bias correction of their own age.

    Adam's kernels keep one step count for all groups. A module whose training begins late has moments `own_updates` old,
    but would be corrected as if they were `updates` old; with beta2 = 0.999 its first step would be 3 times too long.
    """

    def correction(age: int) -> float:
        return float((1 - beta2**age) ** 0.5 / (1 - beta1**age))

    return correction(own_updates) / correction(updates)


def no_weight_decay(parameter: torch.nn.Parameter, name: str) -> bool:
    """Vectors: norm gains, biases, class tokens, layer scales."""
    return parameter.dim() == 1 or name.endswith(".bias")


def labelled(config: RunConfig, label: str) -> Callable[[torch.nn.Parameter, str], bool]:
    return lambda parameter, name: group_label(global_name(name, parameter), config) == label
