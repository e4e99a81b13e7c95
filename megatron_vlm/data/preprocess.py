"""Text and captioned pictures into indexed datasets: what becomes of a record, what is noted of the whole."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from megatron_vlm import __version__
from megatron_vlm.data.captions import CaptionChoice, choose_captions
from megatron_vlm.data.dataset_build import BuildCounts, Document, Recipe, Record, build_documents
from megatron_vlm.data.image_text_sources import PictureRecord, read_image_text_tar
from megatron_vlm.data.indexed_format import dataset_paths, text_dtype
from megatron_vlm.data.indexed_writer import IndexedWriter
from megatron_vlm.data.input_files import expand_inputs
from megatron_vlm.data.picture_check import find_defect
from megatron_vlm.data.quarantine import Quarantine, Reason, Rejection
from megatron_vlm.data.text_sources import TextRecord, read_text_file
from megatron_vlm.data.tokenizer import Tokenizer
from megatron_vlm.errors import ConfigError

TEXT = "text"
IMAGE_TEXT = "image_text"


@dataclass(frozen=True)
class PreprocessSummary:
    """What a run wrote. `metadata` is what NAME.json holds, `seconds` the wall-clock time."""

    prefix: Path
    metadata: dict[str, Any]
    seconds: float

    def describe(self) -> str:
        """One paragraph for a person."""
        known = self.metadata
        size = sum(source["bytes"] for source in known["sources"])
        images = f"{known['images']:,} images, " if known["kind"] == IMAGE_TEXT else ""
        rate = f"{known['documents'] / self.seconds:,.0f} documents/s, {size / self.seconds / 1e6:,.1f} MB/s"
        text = (
            f"Wrote {self.prefix}.bin and .idx: {known['documents']:,} documents, "
            f"{images}{known['tokens']:,} tokens from {len(known['sources'])} files "
            f"({size / 1e6:,.1f} MB) in {self.seconds:,.1f} s ({rate})."
        )
        if known["quarantine"]:
            reasons = ", ".join(f"{count:,} {reason}" for reason, count in known["quarantine"].items())
            where = dataset_paths(self.prefix).quarantine
            text += f" Set aside {sum(known['quarantine'].values()):,} records ({reasons}): {where} names each."
        return text


def preprocess_text(
    inputs: Iterable[str],
    output: Path | str,
    tokenizer: Tokenizer,
    *,
    key: str = "text",
    append_eod: bool = True,
    strict: bool = False,
    workers: int = 1,
    show_progress: bool = False,
) -> PreprocessSummary:
    """Write each record of some .jsonl[.gz|.zst] files as a document of one text sequence.

    Args:
        inputs: file names and glob patterns.
        output: prefix of the dataset.
        tokenizer: its vocabulary size chooses the dtype, uint16 or int32, as Megatron does.
        key: field of the records that holds the text.
        append_eod: end each document with the tokenizer's end-of-document token.
        strict: stop at the first record that cannot be used instead of setting it aside.
        workers: threads that encode.
        show_progress: draw a progress bar on standard error.

    Raises:
        ConfigError: `workers` is below 1.
        DataError: a pattern matches nothing, every record is unusable, or (strict) any is.
    """
    recipe = Recipe[TextRecord](
        read=partial(read_text_file, key=key),
        prepare=partial(_prepare_text, tokenizer=tokenizer, append_eod=append_eod),
    )
    return _run(
        TEXT,
        recipe,
        inputs,
        output,
        tokenizer,
        {"key": key, "append_eod": append_eod},
        strict=strict,
        workers=workers,
        show_progress=show_progress,
    )


def preprocess_image_text(
    inputs: Iterable[str],
    output: Path | str,
    tokenizer: Tokenizer,
    *,
    caption_key: str | None = None,
    caption_choice: CaptionChoice = CaptionChoice.FIRST,
    seed: int = 0,
    append_eod: bool = True,
    strict: bool = False,
    workers: int = 1,
    show_progress: bool = False,
) -> PreprocessSummary:
    """Write each captioned picture of some WebDataset tars as a document: the picture, then its caption.

    The picture's bytes are kept as they are; it is decoded only to find out whether that works. Elements are
    int32, as in Megatron's own multimodal files.

    Args:
        caption_key: field of the .json that holds the caption; by default the .txt, or "caption" where there
            is none.
        caption_choice: what to do with a list of captions; ALL writes the picture once for each.
        seed: seeds CaptionChoice.SAMPLE.

    The other arguments, and what is raised, are those of `preprocess_text`.
    """
    recipe = Recipe[PictureRecord](
        read=partial(read_image_text_tar, caption_key=caption_key),
        prepare=partial(_prepare_pictures, tokenizer=tokenizer, append_eod=append_eod, choice=caption_choice, seed=seed),
    )
    settings = {
        "caption_key": caption_key,
        "caption_choice": caption_choice.value,
        "seed": seed,
        "append_eod": append_eod,
    }
    return _run(
        IMAGE_TEXT,
        recipe,
        inputs,
        output,
        tokenizer,
        settings,
        strict=strict,
        workers=workers,
        show_progress=show_progress,
    )


def _run(
    kind: str,
    recipe: Recipe[Record],
    inputs: Iterable[str],
    output: Path | str,
    tokenizer: Tokenizer,
    settings: dict[str, Any],
    *,
    strict: bool,
    workers: int,
    show_progress: bool,
) -> PreprocessSummary:
    if workers < 1:
        raise ConfigError(f"workers is {workers}; at least one thread has to do the work")
    start = time.monotonic()
    files = expand_inputs(inputs)
    multimodal = kind == IMAGE_TEXT
    dtype = np.dtype(np.int32) if multimodal else text_dtype(tokenizer.vocab_size)
    quarantine = Quarantine(dataset_paths(output).quarantine, strict)
    try:
        with IndexedWriter(output, dtype, multimodal) as writer:
            counts = build_documents(recipe, files, writer, quarantine, workers=workers, show_progress=show_progress)
            metadata = _metadata(kind, tokenizer, settings, counts, quarantine)
            quarantine.commit()
            writer.finalize(metadata)
    finally:
        quarantine.discard()
    return PreprocessSummary(Path(output), metadata, time.monotonic() - start)


def _metadata(
    kind: str, tokenizer: Tokenizer, settings: dict[str, Any], counts: BuildCounts, quarantine: Quarantine
) -> dict[str, Any]:
    """What NAME.json holds. No date and no host: the same inputs give the same bytes."""
    return {
        "tool": "megatron_vlm",
        "tool_version": __version__,
        "kind": kind,
        "documents": counts.documents,
        "tokens": counts.tokens,
        "images": counts.images,
        "tokenizer_fingerprint": tokenizer.fingerprint,
        "vocab_size": tokenizer.vocab_size,
        "eod_id": tokenizer.eod_id,
        "image_token_id": tokenizer.image_token_id,
        "pad_id": tokenizer.pad_id,
        "settings": settings,
        "quarantine": quarantine.by_reason(),
        "sources": counts.sources,
    }


def _prepare_text(records: Sequence[TextRecord], tokenizer: Tokenizer, append_eod: bool) -> list[list[Document] | Rejection]:
    ending = [tokenizer.eod_id] if append_eod else []
    outcomes: list[list[Document] | Rejection] = []
    for record, ids in zip(records, tokenizer.encode_batch([r.text for r in records]), strict=True):
        outcomes.append([Document(None, ids + ending)] if ids else _no_tokens(record))
    return outcomes


def _prepare_pictures(
    records: Sequence[PictureRecord], tokenizer: Tokenizer, append_eod: bool, choice: CaptionChoice, seed: int
) -> list[list[Document] | Rejection]:
    ending = [tokenizer.eod_id] if append_eod else []
    chosen = [choose_captions(record.captions, choice, seed, record.key) for record in records]
    encoded = iter(tokenizer.encode_batch([caption for captions in chosen for caption in captions]))
    outcomes: list[list[Document] | Rejection] = []
    for record, captions in zip(records, chosen, strict=True):
        texts = [next(encoded) for _ in captions]
        defect = find_defect(record.image)
        if defect is not None:
            outcomes.append(Rejection(record.file, record.key, *defect, record.position))
        elif not all(texts):
            outcomes.append(_no_tokens(record))
        else:
            outcomes.append([Document(record.image, ids + ending) for ids in texts])
    return outcomes


def _no_tokens(record: TextRecord | PictureRecord) -> Rejection:
    return Rejection(record.file, record.key, Reason.EMPTY_TEXT, "the tokenizer makes no token of it", record.position)
