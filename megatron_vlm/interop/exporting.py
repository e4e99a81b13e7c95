"""A checkpoint of this project into a folder that `transformers` opens: planned by name and shape, moved one by one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from megatron_vlm.config.loading import from_map
from megatron_vlm.config.model import ModelConfig
from megatron_vlm.config.run import RunConfig
from megatron_vlm.data import atomic_file
from megatron_vlm.data.sources.chat_template import ChatTemplate, load_template
from megatron_vlm.data.tokenizer import Tokenizer
from megatron_vlm.errors import DataError, UserError
from megatron_vlm.interop import registry
from megatron_vlm.interop.chat_jinja import as_jinja
from megatron_vlm.interop.checkpoint_reader import CheckpointTensors
from megatron_vlm.interop.families import lfm2_vl, llava
from megatron_vlm.interop.layouts import Shape
from megatron_vlm.interop.mapping import Entry, TensorMapping, Unexpressed
from megatron_vlm.interop.model_card import Opening, model_card
from megatron_vlm.interop.model_tensors import LANGUAGE, OUTPUT, POSITIONS, PROJECTOR, VISION, WORDS
from megatron_vlm.interop.positions import resized_positions
from megatron_vlm.interop.processor_files import image_processor, patches_note, processor_note, size_note, write_processor
from megatron_vlm.interop.shard_writer import write_shards
from megatron_vlm.interop.tokenizer_files import write_tokenizer
from megatron_vlm.training.checkpoint import find_checkpoint, read_run_file

#: which part of the model becomes a folder
Part = Literal["all", "language", "vision"]
_HEADS: dict[Part, tuple[str, ...]] = {"all": (LANGUAGE, VISION, PROJECTOR), "language": (LANGUAGE,), "vision": (VISION,)}
_VOCABULARY = (WORDS, OUTPUT)


@dataclass
class ExportPlan:
    """What an export would write.

    Attributes:
        model: that is written: the run's, with pictures of the size that the last step trained saw.
        fields: of config.json.
        tokenizer: None where the checkpoint has none, and for an encoder alone.
        writes_tokenizer: whether its files are written; its ids are in any case.
        described: shape and type of each tensor, in the order in which they are written.
        left_over: (tensor, reason) of the checkpoint's that are not written.
        problems: why it cannot be done; empty where it can.
        notes: for the model card.
    """

    checkpoint: Path
    run: dict[str, Any]
    config: RunConfig
    model: ModelConfig
    part: Part
    architecture: str
    fields: dict[str, Any]
    mapping: TensorMapping
    tensors: CheckpointTensors
    rows: int
    tokenizer: Tokenizer | None
    writes_tokenizer: bool
    dtype: torch.dtype | None
    described: dict[str, tuple[Shape, torch.dtype]] = field(default_factory=dict)
    left_over: list[tuple[str, str]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def plan_export(
    where: Path,
    part: Part = "all",
    family: str | None = None,
    vocabulary_rows: int | None = None,
    dtype: torch.dtype | None = None,
    with_tokenizer: bool = True,
    with_updates: bool = True,
) -> ExportPlan:
    """
    Args:
        where: a run's folder or a checkpoint.
        family: model_type that the language model is written as; None: the first that can say it.
        vocabulary_rows: rows of the word embeddings that are kept; None: as the folder had that the checkpoint was imported
            from, and at least the tokenizer's words.
        dtype: of the tensors; None: as the checkpoint has them.
        with_tokenizer: whether tokenizer, processor and chat template are written; ids and size are taken in any case.
        with_updates: whether low-rank updates are added to their matrices.

    Raises:
        DataError: no whole checkpoint, or its tokenizer is not there, where it is written or tells a picture's token.
        Unexpressed: no class of transformers is this model; says why for each that was tried.
    """
    checkpoint = find_checkpoint(where)
    run = read_run_file(checkpoint)
    config = from_map(run["config"])
    tokenizer = None if part == "vision" else _tokenizer(config, run, required=with_tokenizer or part == "all")
    tensors = CheckpointTensors(checkpoint, config.model.lora, with_updates)
    rows = _rows(run, tensors, tokenizer, vocabulary_rows)
    model, pool = _last_trained(config, int(run["step"]))
    _refuse_part(config, part, tokenizer, pool)
    architecture, fields, mapping = _written_as(config, model, part, family, rows, tokenizer)
    writes = with_tokenizer and tokenizer is not None
    plan = ExportPlan(
        checkpoint, run, config, model, part, architecture, fields, mapping, tensors, rows, tokenizer, writes, dtype
    )
    plan.notes += _notes(plan)
    _describe(plan)
    return plan


def _tokenizer(config: RunConfig, run: dict[str, Any], required: bool) -> Tokenizer | None:
    """The run's; None where it has none, or it is not there any more and not `required`."""
    if not config.data.tokenizer:
        return None
    try:
        tokenizer = Tokenizer.load(Path(config.data.tokenizer))
    except DataError:
        if required:
            raise
        return None
    if run.get("tokenizer_fingerprint") not in (None, tokenizer.fingerprint):
        raise DataError(f"{config.data.tokenizer} changed since the checkpoint was saved; put that tokenizer back")
    return tokenizer


def _rows(run: dict[str, Any], tensors: CheckpointTensors, tokenizer: Tokenizer | None, wanted: int | None) -> int:
    stored = tensors.shapes.get(WORDS, (0,))[0]
    words = tokenizer.vocab_size if tokenizer else 0
    rows = wanted or max(words, int(run.get("imported", {}).get("vocabulary_rows", 0))) or stored
    if not words <= rows <= stored:
        raise DataError(f"{rows} rows of the vocabulary: the tokenizer has {words} words and the checkpoint {stored} rows")
    return rows


def _last_trained(config: RunConfig, step: int) -> tuple[ModelConfig, int]:
    """The model with pictures of the size in which `evaluate` shows them, that of the last step trained, and the n of its
    n x n rows averaged into one. Weights that were not trained here are as they came."""
    if not step or not config.segments:
        return config.model, 1
    shape = config.shape_of(step - 1)
    return replace(config.model, vision=replace(config.model.vision, image_size=shape.image_size)), shape.image_pool


def _refuse_part(config: RunConfig, part: Part, tokenizer: Tokenizer | None, pool: int) -> None:
    """Raises Unexpressed and DataError for what no class of a part has, or knows without a tokenizer."""
    if part != "language" and config.model.vision_second is not None:
        raise Unexpressed("no class of transformers has two encoders side by side; export it with --part language")
    if part == "all" and pool > 1:
        raise Unexpressed(
            f"image_pool of the last stage trained is {pool}, and no class of transformers averages rows of pictures; train "
            f"a last stage with image_pool 1, or export with --part language and --part vision"
        )
    if part == "all" and tokenizer is None:
        raise DataError(
            "the checkpoint has no tokenizer (data.tokenizer), which tells the token of a picture; import it again with "
            "--data.tokenizer, or export with --part language and --part vision"
        )


def _notes(plan: ExportPlan) -> list[str]:
    """What whoever opens the folder must know."""
    found = []
    pictures = plan.config.data.pictures
    if plan.part != "language":
        found.append(size_note(plan.model, plan.config.model))
    if plan.architecture == lfm2_vl.ARCHITECTURE and plan.tokenizer is not None:
        found.append(patches_note(plan.model, pictures, plan.tokenizer.special_names.image))
    elif plan.part == "vision" or plan.architecture == llava.ARCHITECTURE:
        found.append(processor_note(pictures))
    if plan.part == "language" and plan.tokenizer is None:
        found.append(
            "The tokenizer is not known, so config.json names no token that ends a document (eos_token_id), and what is "
            "generated ends at its full length alone: give `eos_token_id` to `generate`."
        )
    return [note for note in found if note]


def _written_as(
    config: RunConfig, model: ModelConfig, part: Part, family: str | None, rows: int, tokenizer: Tokenizer | None
) -> tuple[str, dict[str, Any], TensorMapping]:
    """The class, config.json without what every folder has, and the tensors."""
    vision = registry.vision_for(model.vision)
    if part == "vision":
        fields = {"model_type": vision.model_type, **vision.write(model.vision)}
        return vision.architecture, fields, vision.mapping(model.vision)
    language = registry.language_for(model.language, rows, family)
    longest = max(stage.sequence_length or config.data.sequence_length for stage in config.curriculum.stages)
    length = {"max_position_embeddings": max(longest, 2)}
    if part == "language":
        fields = {"model_type": language.model_type, **length, **language.write(model.language, rows), **_ids(tokenizer)}
        return language.architecture, fields, language.mapping(model.language, rows)
    assert tokenizer is not None
    image_token = tokenizer.image_token_id
    if language.base_prefix != "model.":
        raise Unexpressed(
            f"{language.model_type}: its decoder has names inside a vision-language class that are not known; "
            f"export it with --part language"
        )
    words = language.mapping(model.language, rows)
    if not llava.problems(model):
        architecture, mapping = llava.ARCHITECTURE, llava.mapping(model, words, vision.mapping(model.vision))
        fields = {"model_type": llava.MODEL_TYPE, **llava.write(model, language, vision, rows, image_token)}
    elif not lfm2_vl.problems(model):
        architecture, mapping = lfm2_vl.ARCHITECTURE, lfm2_vl.mapping(model, words)
        fields = {"model_type": lfm2_vl.MODEL_TYPE, **lfm2_vl.write(model, language, rows, image_token)}
    else:
        raise Unexpressed(
            "no class of transformers is this encoder and projector:\n"
            + "\n".join(f"  - llava: {reason}" for reason in llava.problems(model))
            + "".join(f"\n  - lfm2_vl: {reason}" for reason in lfm2_vl.problems(model))
        )
    fields |= _ids(tokenizer)
    fields["text_config"] = {**length, **fields["text_config"], **_ids(tokenizer)}
    return architecture, fields, mapping


def _ids(tokenizer: Tokenizer | None) -> dict[str, Any]:
    if tokenizer is None:
        return {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    return {"bos_token_id": None, "eos_token_id": tokenizer.eod_id, "pad_token_id": tokenizer.pad_id}


def _stored_shape(plan: ExportPlan, entry: Entry) -> Shape:
    """Ours without the vocabulary's padding, and positions as they are interpolated."""
    shape = plan.tensors.shapes[entry.ours]
    if entry.ours == POSITIONS:
        return (shape[0] + plan.model.vision.patches - plan.config.model.vision.patches, *shape[1:])
    return (plan.rows, *shape[1:]) if entry.ours in _VOCABULARY else shape


def _describe(plan: ExportPlan) -> None:
    for entry in plan.mapping.entries:
        if entry.ours not in plan.tensors.shapes:
            plan.problems.append(f"{plan.checkpoint}: {entry.ours} is missing, of which {' + '.join(entry.theirs)} is made")
            continue
        found = _stored_shape(plan, entry)
        if found != entry.layout.ours:
            plan.problems.append(
                f"{plan.checkpoint}: {entry.ours} has the shape {list(found)}, and its configuration says "
                f"{list(entry.layout.ours)}"
            )
        dtype = plan.dtype or plan.tensors.dtype(entry.ours)
        for name, shape in zip(entry.theirs, entry.layout.theirs, strict=True):
            plan.described[name] = (shape, dtype)
    common = next(iter(plan.described.values()))[1] if plan.described else torch.float32
    for name, (shape, _) in plan.mapping.filled.items():
        plan.described[name] = (shape, common)
    mapped = {entry.ours for entry in plan.mapping.entries}
    for name in plan.tensors.shapes:
        if name in mapped:
            continue
        if name.startswith(_HEADS[plan.part]):
            plan.problems.append(f"{plan.checkpoint}: {name} {list(plan.tensors.shapes[name])} is not mapped to anything")
        else:
            plan.left_over.append((name, f"not of the {plan.part} model"))


def _values(plan: ExportPlan) -> Iterator[tuple[str, Tensor]]:
    for entry in plan.mapping.entries:
        value = plan.tensors.read(entry.ours)
        if entry.ours in _VOCABULARY:
            value = value[: plan.rows]
        if entry.ours == POSITIONS and plan.model != plan.config.model:
            value = resized_positions(value, plan.model.vision)
        try:
            parts = entry.layout.split(value)
        except ValueError as reason:
            raise Unexpressed(f"{plan.architecture}: {entry.ours}: {reason}") from None
        for name, part in zip(entry.theirs, parts, strict=True):
            # of its own storage: parts of one tensor would be taken for tied weights
            yield name, part.to(plan.described[name][1]).clone(memory_format=torch.contiguous_format)
    for name, (shape, constant) in plan.mapping.filled.items():
        yield name, torch.full(shape, constant, dtype=plan.described[name][1])


def run_export(plan: ExportPlan, folder: Path, shard_bytes: int = 4 << 30, chat_template: str = "plain") -> list[Path]:
    """Write the folder; config.json comes last, so that a folder without it is one that was cut off.

    Raises:
        DataError: the plan has problems (all of them); a tokenizer that cannot be written, or lacks special tokens of the
            chat template.
        ConfigError: the chat template is not known.
        Unexpressed: values that the class cannot hold.
        UserError: the folder holds something, or cannot be written.
    """
    if plan.problems:
        raise DataError("not exported:\n" + "\n".join(f"  - {line}" for line in plan.problems))
    template = _chat_template(plan.tokenizer, chat_template) if plan.tokenizer and plan.writes_tokenizer else None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise UserError(f"{folder}: there is something in it; give a new folder")
        written = write_shards(folder, plan.described, _values(plan), shard_bytes)
        _write_beside(plan, folder, template)
        dtype = str(next(iter(plan.described.values()))[1]).removeprefix("torch.")
        fields = {"architectures": [plan.architecture], "dtype": dtype, **plan.fields}
        atomic_file.write_text(folder / "config.json", json.dumps(fields, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"{folder}: cannot be written: {error}") from None
    return written


def _chat_template(tokenizer: Tokenizer, name: str) -> ChatTemplate:
    """Raises DataError where the tokenizer lacks special tokens of the template: they would be plain text."""
    template = load_template(name)
    lacking = [special for special in template.special_names() if not tokenizer.has_special(special)]
    if lacking:
        raise DataError(
            f"--chat-template {name}: the tokenizer has no special token {', '.join(map(repr, lacking))}, and would make "
            f"plain text of it; give the template that preprocess was given"
        )
    return template


def _opening(plan: ExportPlan) -> Opening:
    if plan.part == "vision":
        return Opening("image-feature-extraction", "AutoModel", "AutoImageProcessor", speaks=False)
    beside = "AutoTokenizer" if plan.writes_tokenizer else ""
    if plan.part == "language":
        return Opening("text-generation", "AutoModelForCausalLM", beside)
    if beside and plan.architecture == llava.ARCHITECTURE:
        beside = "AutoProcessor"
    return Opening("image-text-to-text", "AutoModelForImageTextToText", beside)


def _write_beside(plan: ExportPlan, folder: Path, template: ChatTemplate | None) -> None:
    config, model, tokenizer = plan.config, plan.model, plan.tokenizer
    if tokenizer is not None:
        atomic_file.write_text(folder / "generation_config.json", json.dumps(_ids(tokenizer), indent=2) + "\n")
        if template is not None:
            image = tokenizer.special_names.image
            write_tokenizer(tokenizer, Path(config.data.tokenizer), folder, config.data.sequence_length)
            atomic_file.write_text(folder / "chat_template.jinja", as_jinja(template, image))
            if plan.architecture == llava.ARCHITECTURE:
                write_processor(folder, model, config.data.pictures, image)
    if plan.part == "vision":
        values = image_processor(model, config.data.pictures)
        atomic_file.write_text(folder / "preprocessor_config.json", json.dumps(values, indent=2) + "\n")
    card = model_card(config, plan.run, plan.architecture, _opening(plan), plan.notes)
    atomic_file.write_text(folder / "README.md", card)
