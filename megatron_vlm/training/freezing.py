"""What the `freeze` lists of stages come to, once there is a model whose parameters have names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist

from megatron_vlm.config.checks import refuse
from megatron_vlm.config.curriculum_checks import stage_path
from megatron_vlm.config.freeze_checks import nothing_trained
from megatron_vlm.config.run import RunConfig
from megatron_vlm.data.documents import DocumentSource
from megatron_vlm.training.parameter_groups import frozen_in, global_name, is_trained, module_of


def check_freezing(
    config: RunConfig, sources: Mapping[str, DocumentSource], chunks: Sequence[torch.nn.Module], device: torch.device
) -> None:
    """Collective, with one small reduction: a pipeline stage knows its own parameters alone.

    Raises:
        ConfigError: on every rank, for entries that begin the name of no parameter on any, and for stages that would train
            nothing: no parameter is left, or none but the encoder's and the projector's where no source has pictures.
    """
    names = [global_name(name, parameter) for chunk in chunks for name, parameter in chunk.named_parameters()]
    stages = config.curriculum.stages
    own = [_facts(config, stage.freeze, names) for stage in stages]
    facts = torch.tensor([fact for stage in own for fact in stage], dtype=torch.float32, device=device)
    dist.all_reduce(facts, op=dist.ReduceOp.MAX)
    known, found = iter(facts.bool().tolist()), []
    for index, stage in enumerate(stages):
        where = f"{stage_path(config, index)}.freeze"
        for entry in stage.freeze:
            if not next(known):
                found.append(f"{where}: {entry!r} begins the name of no parameter of this model; leave it out")
        language, others = next(known), next(known)
        if not language and not others:
            found.append(f"{where}: {nothing_trained(stage.freeze)}")
        elif not language and not _has_pictures(config, index, sources):
            found.append(
                f"{where}: [{', '.join(stage.freeze)}] leaves the pictures' way alone to be trained, and no source of the "
                f"stage has pictures; leave language out, or give a source with pictures"
            )
    refuse(found)


def _facts(config: RunConfig, freeze: Sequence[str], names: Sequence[str]) -> list[bool]:
    """Of a stage on this rank: for each entry whether it freezes something, then whether anything of the language model is
    trained, and anything of encoder and projector."""
    matched = [any(frozen_in(name, [entry]) for name in names) for entry in freeze]
    trained = [name for name in names if is_trained(name, freeze, config)]
    language = [module_of(name) == "language" for name in trained]
    return [*matched, any(language), not all(language)]


def _has_pictures(config: RunConfig, index: int, sources: Mapping[str, DocumentSource]) -> bool:
    """Whether a source that the stage reads, also while it ramps, has pictures."""
    weights = [config.curriculum.weights(index, progress) for progress in (0.0, 1.0)]
    return any(sources[name].has_pictures for one in weights for name, weight in one.items() if weight > 0)
