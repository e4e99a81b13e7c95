"""Weights of other projects into a checkpoint of this one: planned by name and shape first, then moved one by one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_vlm.config.loading import apply_overrides
from megatron_vlm.config.model import ModelConfig
from megatron_vlm.config.run import RunConfig
from megatron_vlm.data.tokenizer import Tokenizer
from megatron_vlm.errors import DataError
from megatron_vlm.interop.checkpoint_writer import write_checkpoint
from megatron_vlm.interop.layouts import Shape
from megatron_vlm.interop.mapping import Entry
from megatron_vlm.interop.model_tensors import (
    OUTPUT,
    POSITIONS,
    SECOND,
    SECOND_POSITIONS,
    VISION,
    WORDS,
    first_constant,
    model_tensors,
)
from megatron_vlm.interop.positions import resized_positions
from megatron_vlm.interop.sources import Source
from megatron_vlm.models.initialization import draw_whole
from megatron_vlm.models.language import padded_vocab_size

_VOCABULARY = (WORDS, OUTPUT)


@dataclass(frozen=True)
class Step:
    """One tensor of the checkpoint: from which source, or from none, as a new run begins with it."""

    name: str
    shape: Shape
    source: Source | None = None
    entry: Entry | None = None
    note: str = ""


@dataclass
class ImportPlan:
    """What an import would do.

    Attributes:
        config: of the run that begins with the weights.
        tokenizer: None where none was given.
        steps: a tensor each.
        left_over: (folder, tensor, reason) of what is not taken.
        problems: why it cannot be done; empty where it can.
    """

    config: RunConfig
    tokenizer: Tokenizer | None
    steps: list[Step] = field(default_factory=list)
    left_over: list[tuple[Path, str, str]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def import_config(sources: Sequence[Source], base: RunConfig, overrides: Sequence[str]) -> RunConfig:
    """`base` with the model that the sources are; then the overrides. Raises DataError where two hold the same part."""
    parts: dict[str, Any] = {}
    for source in sources:
        for part in ("language", "vision", "projector"):
            value = getattr(source, part)
            if value is None:
                continue
            if part == "vision" and part in parts and "vision_second" not in parts and source.language is None:
                parts["vision_second"] = value
                continue
            if part in parts:
                raise DataError(f"{source.where}: its {part} model is there from another folder; give one of each")
            parts[part] = value
    multiple = base.model.language.vocab_pad_multiple
    if "language" in parts:
        parts["language"] = replace(parts["language"], vocab_pad_multiple=multiple)
    return apply_overrides(replace(base, model=ModelConfig(**{**vars(base.model), **parts})), overrides)[0]


def with_second_encoder(sources: Sequence[Source]) -> list[Source]:
    """The sources, the second encoder among them under the names that it has in the model."""
    found: list[Source] = []
    seen = False
    for source in sources:
        if source.vision is not None and seen:
            entries = tuple(
                replace(entry, ours=SECOND + entry.ours.removeprefix(VISION)) for entry in source.mapping.entries
            )
            source = replace(source, mapping=replace(source.mapping, entries=entries))
        seen = seen or source.vision is not None
        found.append(source)
    return found


def with_tokenizer_of(sources: Sequence[Source], base: RunConfig) -> RunConfig:
    """`base` with the tokenizer that lies beside a language model, where it has none of its own."""
    if base.data.tokenizer:
        return base
    folder = next((s.where for s in sources if s.language is not None and (s.where / "tokenizer.json").is_file()), None)
    return base if folder is None else replace(base, data=replace(base.data, tokenizer=str(folder.resolve())))


def plan_import(sources: Sequence[Source], base: RunConfig, overrides: Sequence[str] = ()) -> ImportPlan:
    """
    Raises:
        ConfigError: an override.
        DataError: two sources hold the same part; the tokenizer cannot be used; nothing tells the size of the vocabulary.
    """
    config = import_config(sources, base, overrides)
    tokenizer = Tokenizer.load(Path(config.data.tokenizer)) if config.data.tokenizer else None
    rows = max(s.rows for s in sources)
    if tokenizer is None and not rows:
        raise DataError("an encoder alone says nothing of the vocabulary; give --data.tokenizer, or a language model too")
    config, padded = _vocabulary(config, rows, tokenizer.vocab_size if tokenizer else rows)
    plan = ImportPlan(config, tokenizer)
    wanted = model_tensors(config.model, padded)
    sources = with_second_encoder(sources)
    taken = {entry.ours: (source, entry) for source in sources for entry in source.mapping.entries}
    for name, shape in wanted.items():
        if name in taken:
            plan.steps.append(_step(name, shape, *taken[name], plan.problems))
        else:
            plan.steps.append(Step(name, shape, note="as a new run begins with it"))
    for source in sources:
        _account(source, wanted, plan)
    return plan


def _vocabulary(config: RunConfig, rows: int, words: int) -> tuple[RunConfig, int]:
    """Rows of the padded vocabulary, and the configuration with which a run of this tokenizer makes so many."""
    language = config.model.language
    multiple = language.vocab_pad_multiple
    padded = padded_vocab_size(max(rows, words), multiple)
    if padded_vocab_size(words, multiple) != padded:
        # the folder has rows that its tokenizer has no words for
        config = replace(config, model=replace(config.model, language=replace(language, vocab_pad_multiple=padded)))
    return config, padded


def _step(name: str, shape: Shape, source: Source, entry: Entry, problems: list[str]) -> Step:
    there = entry.layout.ours
    for theirs, expected in zip(entry.theirs, entry.layout.theirs, strict=True):
        found = source.tensors.shapes.get(theirs)
        if found is None:
            problems.append(f"{source.where}: {theirs} is missing, of which {name} is made")
        elif found != expected:
            problems.append(
                f"{source.where}: {theirs} has the shape {list(found)}, and {name} needs {list(expected)} of it "
                f"by its config.json"
            )
    if there == shape:
        return Step(name, shape, source, entry)
    if name in _VOCABULARY and there[1:] == shape[1:] and there[0] < shape[0]:
        return Step(name, shape, source, entry, f"{shape[0] - there[0]} rows of zeros added for the vocabulary's padding")
    if name in (POSITIONS, SECOND_POSITIONS) and there[1:] == shape[1:]:
        return Step(name, shape, source, entry, f"interpolated from {there[0]} positions to {shape[0]}")
    problems.append(
        f"{source.where}: {' + '.join(entry.theirs)} make {name} of the shape {list(there)}, and the configuration wants "
        f"{list(shape)}"
    )
    return Step(name, shape, source, entry)


def _account(source: Source, wanted: dict[str, Shape], plan: ImportPlan) -> None:
    """Every tensor of a source is taken, or left with a reason, or an error."""
    used = {theirs for entry in source.mapping.entries for theirs in entry.theirs}
    for name in source.tensors.shapes:
        if name in used:
            continue
        reason = source.mapping.why_ignored(name)
        if reason is None:
            plan.problems.append(f"{source.where}: {name} {list(source.tensors.shapes[name])} is not mapped to anything")
        else:
            plan.left_over.append((source.where, name, reason))
    for entry in source.mapping.entries:
        if entry.ours not in wanted:
            plan.problems.append(f"{source.where}: {' + '.join(entry.theirs)} would be {entry.ours}, which the model lacks")


def tensors_of(plan: ImportPlan, dtype: torch.dtype | None) -> Iterator[tuple[str, Tensor]]:
    """Name and whole tensor, one after another; `dtype` None: as the source has it.

    Raises DataError where values cannot be taken as they are.
    """
    config = plan.config
    language, seed = config.model.language, config.schedule.seed
    for step in plan.steps:
        value = _value(step, plan)
        if step.source is None:
            constant = first_constant(step.name, language.zero_centered_gamma)
            value = (
                draw_whole(step.name, step.shape, language, seed) if constant is None else torch.full(step.shape, constant)
            )
        assert value is not None
        yield step.name, value if dtype is None else value.to(dtype)


def _value(step: Step, plan: ImportPlan) -> Tensor | None:
    if step.source is None or step.entry is None:
        return None
    try:
        value = step.entry.layout.join([step.source.tensors.read(name) for name in step.entry.theirs])
    except ValueError as reason:
        raise DataError(f"{step.source.where}: {' + '.join(step.entry.theirs)}: {reason}") from None
    if step.name in _VOCABULARY and value.size(0) < step.shape[0]:
        return torch.cat([value, value.new_zeros(step.shape[0] - value.size(0), value.size(1))])
    if step.name in (POSITIONS, SECOND_POSITIONS) and tuple(value.shape) != step.shape:
        model = plan.config.model
        vision = model.vision if step.name == POSITIONS else model.vision_second
        assert vision is not None
        return resized_positions(value, vision)
    return value


def run_import(plan: ImportPlan, to: Path, dtype: torch.dtype | None = None, file_bytes: int = 4 << 30) -> Path:
    """Write the checkpoint `to`/checkpoints/step-00000000; its path.

    Raises:
        DataError: the plan has problems (all of them), or values cannot be taken as they are.
        UserError: it cannot be written.
    """
    if plan.problems:
        raise DataError("not imported:\n" + "\n".join(f"  - {line}" for line in plan.problems))
    sources = {str(step.source.where): step.source for step in plan.steps if step.source is not None}
    facts = {
        "tokenizer_fingerprint": plan.tokenizer.fingerprint if plan.tokenizer else None,
        "imported": {
            "from": {where: source.model_type for where, source in sources.items()},
            "vocabulary_rows": max((source.rows for source in sources.values()), default=0),
        },
    }
    return write_checkpoint(to, plan.config, tensors_of(plan, dtype), facts, file_bytes)
