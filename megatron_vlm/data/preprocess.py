"""Text, captioned pictures, conversations and interleaved documents into indexed datasets: one call a kind."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from megatron_vlm.data.building.build import BuildJob, BuildResult, SourceFile, build, full_disk_is_named, take_lock
from megatron_vlm.data.building.options import BuildOptions
from megatron_vlm.data.captions import CaptionChoice
from megatron_vlm.data.indexed_format import dataset_paths, text_dtype
from megatron_vlm.data.records import Source
from megatron_vlm.data.sources.choose import image_text_source, text_source
from megatron_vlm.data.sources.opening import InputFile, expand_inputs, file_sha256
from megatron_vlm.data.tokenizer import Tokenizer
from megatron_vlm.errors import DataError

if TYPE_CHECKING:
    from megatron_vlm.data.sources.chat_template import ChatTemplate

TEXT = "text"
IMAGE_TEXT = "image_text"
CONVERSATIONS = "conversations"
INTERLEAVED = "interleaved"
STDIN = "-"
STDIN_NAME = "<stdin>"


@dataclass(frozen=True)
class PreprocessSummary:
    """What a run wrote. `metadata` is what NAME.json of the first output holds, `seconds` the wall-clock time."""

    prefix: Path
    metadata: dict[str, Any]
    result: BuildResult

    @property
    def seconds(self) -> float:
        return self.result.seconds

    @property
    def lost_share(self) -> float:
        """Share of the records that were set aside because they cannot be used."""
        return self.result.lost / self.result.records if self.result.records else 0.0

    def totals(self) -> dict[str, int]:
        """Documents, tokens and images of all outputs."""
        known = [output.statistics for output in self.result.outputs]
        return {name: sum(getattr(s, name) for s in known) for name in ("documents", "tokens", "images")}

    def describe(self) -> str:
        """One paragraph for a person."""
        known, totals, result = self.metadata, self.totals(), self.result
        seconds = max(self.seconds, 1e-9)
        images = f"{totals['images']:,} images, " if totals["images"] else ""
        rates = (
            f"{totals['documents'] / seconds:,.0f} documents/s, {result.source_bytes / seconds / 1e6:,.1f} MB/s, "
            f"{totals['tokens'] / seconds:,.0f} tokens/s"
        )
        prefixes = [str(output.prefix) for output in result.outputs]
        names = prefixes[0] if len(prefixes) == 1 else f"{len(prefixes)} datasets ({prefixes[0]} to {prefixes[-1]})"
        text = (
            f"Wrote {names}{'.bin and .idx' if len(prefixes) == 1 else ''}: {totals['documents']:,} documents, "
            f"{images}{totals['tokens']:,} tokens from {len(known['sources'])} files "
            f"({result.source_bytes / 1e6:,.1f} MB) in {seconds:,.1f} s ({rates})."
        )
        if result.again:
            text += f" {result.again:,} of {result.units:,} parts had been made by an earlier run."
        if known["filtered"]:
            text += f" Filtered out: {_counted(known['filtered'])}."
        if known["quarantine"]:
            where = dataset_paths(self.prefix).quarantine
            text += f" Set aside {result.lost:,} records ({_counted(known['quarantine'])}): {where} names each."
        return text

    def as_json(self) -> dict[str, Any]:
        """The same for a program."""
        return {
            "outputs": [str(output.prefix) for output in self.result.outputs],
            **self.totals(),
            "records": self.result.records,
            "quarantined": self.result.lost,
            "quarantine": self.metadata["quarantine"],
            "filtered": self.metadata["filtered"],
            "source_bytes": self.result.source_bytes,
            "seconds": self.seconds,
            "parts": self.result.units,
            "parts_of_an_earlier_run": self.result.again,
        }


def preprocess_text(
    inputs: Iterable[str],
    output: Path | str,
    tokenizer: Tokenizer,
    *,
    key: str = "text",
    separator: str | None = None,
    options: BuildOptions | None = None,
    workers: int = 1,
    show_progress: bool = False,
) -> PreprocessSummary:
    """Write each record of some text files as a document of one text sequence.

    Args:
        inputs: file names, URLs, glob patterns, "@LIST" for a file of them; "-" is .jsonl from standard input.
        output: prefix of the dataset.
        tokenizer: its vocabulary size chooses the dtype, uint16 or int32, as Megatron does.
        key: field or column of the records that holds the text.
        separator: what stands between documents of a .txt; None where a file is one document.
        options: what is done with every record.
        workers: processes that read and encode.
        show_progress: draw a progress bar on standard error.

    Raises:
        ConfigError: `workers` is below 1.
        DataError: a pattern matches nothing, every record is unusable, or (`options.strict`) any is.
    """

    def source(url: str) -> Source:
        return text_source(url, key=key, separator=separator)

    settings = {"key": key, "separator": separator}
    dtype = text_dtype(tokenizer.vocab_size)
    return _run(TEXT, inputs, output, tokenizer, source, settings, options, workers, show_progress, dtype, ".jsonl")


def preprocess_image_text(
    inputs: Iterable[str],
    output: Path | str,
    tokenizer: Tokenizer,
    *,
    captions: str | Mapping[str, float] | None = None,
    caption_choice: CaptionChoice = CaptionChoice.FIRST,
    image_key: str | None = None,
    image_folder: str | None = None,
    seed: int = 0,
    options: BuildOptions | None = None,
    workers: int = 1,
    show_progress: bool = False,
) -> PreprocessSummary:
    """Write each captioned picture of some tars, parquet files or lists as a document: the picture, then its caption.

    Elements are int32, as in Megatron's own multimodal files.

    Args:
        captions: field or column that holds the caption, or the weights of several, of which one is drawn for each record;
            by default what is common in the format.
        caption_choice: what to do with a list of captions; ALL writes the picture once for each.
        image_key: column or field of the picture, or of its path.
        image_folder: where the pictures of a list lie; by default beside the list.
        seed: of what is sampled.

    The other arguments, and what is raised, are those of `preprocess_text`.
    """
    settings = {
        "captions": dict(captions) if isinstance(captions, Mapping) else captions,
        "caption_choice": caption_choice.value,
        "image_key": image_key,
        "image_folder": image_folder,
        "seed": seed,
    }

    def source(url: str) -> Source:
        return image_text_source(
            url,
            captions=captions,
            choice=caption_choice,
            seed=seed,
            image=image_key,
            folder=image_folder,
        )

    return _run(IMAGE_TEXT, inputs, output, tokenizer, source, settings, options, workers, show_progress)


def preprocess_conversations(
    inputs: Iterable[str],
    output: Path | str,
    tokenizer: Tokenizer,
    *,
    template: ChatTemplate | str = "plain",
    images: Iterable[str] = (),
    reader: Mapping[str, Any] | None = None,
    options: BuildOptions | None = None,
    workers: int = 1,
    show_progress: bool = False,
) -> PreprocessSummary:
    """Write each conversation of some LLaVA or chat files as a document, of which only the assistant's words are learnt.

    Args:
        template: how turns are written: a built-in's name, or a file.
        images: the folder or the tars that hold the pictures, where the records name them.
        reader: further fields of `megatron_vlm.data.sources.conversations.ConversationSource`.

    The other arguments, and what is raised, are those of `preprocess_text`; DataError also where the tokenizer lacks a
    special token of the template.
    """
    from megatron_vlm.data.sources.chat_template import load_template
    from megatron_vlm.data.sources.choose_documents import conversation_source
    from megatron_vlm.data.sources.picture_store import picture_store

    chosen = load_template(template) if isinstance(template, str) else template
    for name in chosen.special_names():
        tokenizer.special_id(name)
    stores, more = tuple(images), dict(reader or {})
    settings = {"template": chosen.to_map(), "images": list(stores), **{name: str(value) for name, value in more.items()}}
    pictures = picture_store(stores) if stores else None
    if pictures is not None:
        pictures.check()

    def source(url: str) -> Source:
        return conversation_source(url, pictures=pictures, template=chosen, **more)

    stored = pictures.files() if pictures is not None else []
    return _run(CONVERSATIONS, inputs, output, tokenizer, source, settings, options, workers, show_progress, stores=stored)


def preprocess_interleaved(
    inputs: Iterable[str],
    output: Path | str,
    tokenizer: Tokenizer,
    *,
    images: Iterable[str] = (),
    reader: Mapping[str, Any] | None = None,
    options: BuildOptions | None = None,
    workers: int = 1,
    show_progress: bool = False,
) -> PreprocessSummary:
    """Write each document of some OBELICS or MMC4 files, its pictures in their places.

    Args:
        images: the folder or the tars that hold the pictures, where the records name them.
        reader: further arguments of `megatron_vlm.data.sources.choose_documents.interleaved_source`.

    The other arguments, and what is raised, are those of `preprocess_text`.
    """
    from megatron_vlm.data.sources.choose_documents import interleaved_source
    from megatron_vlm.data.sources.picture_store import picture_store

    stores, more = tuple(images), dict(reader or {})
    pictures = picture_store(stores) if stores else None
    if pictures is not None:
        pictures.check()

    def source(url: str) -> Source:
        return interleaved_source(url, pictures=pictures, **more)

    settings = {"images": list(stores), **{name: str(value) for name, value in more.items()}}
    stored = pictures.files() if pictures is not None else []
    return _run(INTERLEAVED, inputs, output, tokenizer, source, settings, options, workers, show_progress, stores=stored)


def _run(
    kind: str,
    inputs: Iterable[str],
    output: Path | str,
    tokenizer: Tokenizer,
    source: Callable[[str], Source],
    settings: dict[str, Any],
    options: BuildOptions | None,
    workers: int,
    show_progress: bool,
    dtype: np.dtype[Any] | None = None,
    stdin_suffix: str | None = None,
    stores: Sequence[InputFile] = (),
) -> PreprocessSummary:
    options = options or BuildOptions()
    prefix = Path(output)
    names = list(inputs)
    known = {**settings, "append_eod": options.append_eod, **_differing(options)}
    multimodal = kind != TEXT
    element = np.dtype("<i4") if dtype is None else dtype
    with ExitStack() as stack:
        if STDIN in names:
            if stdin_suffix is None or names != [STDIN]:
                raise DataError('"-" (standard input) is for text alone, and stands alone: give files by their names')
            spooled = stack.enter_context(_spooled(prefix, stdin_suffix))
            files = [SourceFile(_spooled_input(spooled), source(str(spooled)), STDIN_NAME)]
        else:
            files = [SourceFile(file, source(file.url)) for file in expand_inputs(names)]
        job = BuildJob(kind, files, prefix, tokenizer, element, multimodal, options, known, stores)
        result = build(job, workers=workers, show_progress=show_progress)
    first = dataset_paths(result.outputs[0].prefix).metadata
    return PreprocessSummary(prefix, json.loads(first.read_text(encoding="utf-8")), result)


def _differing(options: BuildOptions) -> dict[str, str]:
    """The options that are not as they are by default, for the metadata."""
    plain = BuildOptions()
    names = (
        "thorough",
        "max_pixels",
        "reencode",
        "pictures",
        "captions",
        "duplicates",
        "max_tokens",
        "split",
        "shard_bytes",
    )
    return {n: str(getattr(options, n)) for n in names if getattr(options, n) != getattr(plain, n)}


@contextmanager
def _spooled(prefix: Path, suffix: str) -> Iterator[Path]:
    """Standard input in a file beside the output: what can be read once cannot be gone back to. Removed at the end, however
    that comes: the same command reads its input again."""
    path = dataset_paths(prefix).data.with_name(f"{prefix.name}.stdin{suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = path.open("ab", buffering=0)
    except OSError as error:
        raise DataError(
            f"{path}, where standard input is kept, cannot be written ({error.strerror}): choose another output"
        ) from error
    with stream:
        if not take_lock(stream, path):  # of two runs at one output, the later must not touch the earlier one's
            raise DataError(f"another run is writing {prefix}: wait for it, or choose another output")
        try:
            with full_disk_is_named(prefix):
                stream.truncate(0)
                while block := memoryview(sys.stdin.buffer.read(1 << 20)):
                    while block:  # a file without buffer may take less
                        block = block[stream.write(block) :]
            yield path
        except DataError as error:
            raise DataError(str(error).replace(str(path), STDIN_NAME)) from error  # the file is gone when it is read
        finally:
            path.unlink(missing_ok=True)


def _spooled_input(path: Path) -> InputFile:
    # Its time is another in every run; what it says is not.
    return InputFile(str(path), path.stat().st_size, file_sha256(str(path)))


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in counts.items())
