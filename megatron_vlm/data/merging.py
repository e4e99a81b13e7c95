"""Datasets put together into one, document after document, as Megatron-LM's merge tool does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_vlm import __version__
from megatron_vlm.data.document_copy import CopyCounts, Selection, copy_documents, count_selected
from megatron_vlm.data.indexed_format import dataset_paths
from megatron_vlm.data.indexed_reader import IndexedReader
from megatron_vlm.errors import ConfigError, DataError

#: what is of the copy and not of what it was copied from
_OWN_FIELDS = {"tool", "tool_version", "kind", "documents", "tokens", "images", "quarantine", "sources", "checksums"} | {
    "merged_from",
    "sampled_from",
}


def merge_datasets(
    prefixes: Sequence[Path | str],
    output: Path | str,
    *,
    force: bool = False,
    workers: int | None = None,
    advance: Callable[[int], object] | None = None,
    total: Callable[[int], object] | None = None,
) -> dict[str, Any]:
    """Write the documents of `prefixes`, in that order, as one dataset.

    Args:
        prefixes: datasets of one dtype, all multimodal or all not.
        output: prefix of the new dataset.
        force: merge datasets of different tokenizers, though one id means two texts then. The new dataset names a tokenizer
            only where all of them name the same.
        workers, advance: as of `copy_documents`.
        total: called once with how many bytes `advance` will be told of.

    Returns:
        What NAME.json says.

    Raises:
        ConfigError: there is nothing to merge.
        DataError: the datasets do not fit each other, one is damaged, or the output cannot be written.
    """
    if not prefixes:
        raise ConfigError("there is nothing to merge: name two datasets or more")
    readers = [IndexedReader(prefix) for prefix in prefixes]
    _refuse_other_kinds(readers)
    if not force:
        _refuse_other_tokenizers(readers)
    selections = [Selection.everything(reader) for reader in readers]
    counts = count_selected(selections)
    if total is not None:
        total(2 * counts.data_bytes)
    metadata = merged_metadata(readers, counts)
    quarantine = [dataset_paths(reader.prefix).quarantine for reader in readers]
    return copy_documents(output, selections, counts, metadata, quarantine=quarantine, workers=workers, advance=advance)


def tokenizer_fingerprint(metadata: Mapping[str, Any]) -> str | None:
    """Of the tokenizer that a dataset was made with; None where its metadata does not say."""
    tokenizer = metadata.get("tokenizer")
    found = tokenizer.get("fingerprint") if isinstance(tokenizer, dict) else metadata.get("tokenizer_fingerprint")
    return found if isinstance(found, str) else None


def merged_metadata(readers: Sequence[IndexedReader], counts: CopyCounts) -> dict[str, Any]:
    """NAME.json of datasets together: counts of the index, sources one after another, and else what all agree on."""
    known = [reader.metadata for reader in readers]
    rejected: Counter[str] = Counter()
    for metadata in known:
        for reason, count in _mapping(metadata.get("quarantine")).items():
            if isinstance(count, int):
                rejected[reason] += count
    kinds = {str(metadata.get("kind")) for metadata in known if metadata}
    shared = {
        name: value
        for name, value in known[0].items()
        if name not in _OWN_FIELDS and all(name in metadata and metadata[name] == value for metadata in known)
    }
    origins = [
        {"prefix": str(reader.prefix), "documents": reader.document_count, "fingerprint": reader.fingerprint}
        for reader in readers
    ]
    return {
        "tool": "megatron_vlm",
        "tool_version": __version__,
        "kind": kinds.pop() if len(kinds) == 1 else "merged",
        "documents": counts.documents,
        "tokens": counts.tokens,
        "images": counts.images,
        **shared,
        "merged_from": origins,
        "quarantine": dict(sorted(rejected.items())),
        "sources": [source for metadata in known for source in _rows(metadata.get("sources"))],
    }


def _refuse_other_kinds(readers: Sequence[IndexedReader]) -> None:
    first = readers[0]
    with_sequences = [reader for reader in readers if reader.sequence_count]
    for reader in readers[1:]:
        if reader.dtype != first.dtype:
            raise DataError(
                f"{first.prefix} has elements of {first.dtype} and {reader.prefix} of {reader.dtype}: merge datasets of one "
                "dtype, or preprocess one of them again with the other's tokenizer"
            )
    for reader in with_sequences[1:]:
        if reader.multimodal != with_sequences[0].multimodal:
            pair = (with_sequences[0], reader)
            pictures, text = pair if pair[0].multimodal else pair[::-1]
            raise DataError(
                f"{pictures.prefix} is multimodal and {text.prefix} is text alone: merge datasets of one kind; a run reads "
                "both kinds where its data names each"
            )


def _refuse_other_tokenizers(readers: Sequence[IndexedReader]) -> None:
    named = {reader: tokenizer_fingerprint(reader.metadata) for reader in readers}
    known = [(reader, name) for reader, name in named.items() if name is not None]
    for reader, name in known[1:]:
        if name != known[0][1]:
            raise DataError(
                f"{known[0][0].prefix} was made with the tokenizer {str(known[0][1])[:12]} and {reader.prefix} with "
                f"{name[:12]}, so one token id means two texts: preprocess one of them again, or merge them with --force"
            )


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _rows(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
