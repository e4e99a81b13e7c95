"""Datasets put together into one, document after document, as Megatron-LM's merge tool does."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_vlm import __version__
from megatron_vlm.data.document_copy import Selection, copy_documents, count_selected
from megatron_vlm.data.indexed_format import dataset_paths
from megatron_vlm.data.indexed_reader import IndexedReader
from megatron_vlm.data.source_rows import merged_rows, source_rows
from megatron_vlm.errors import ConfigError, DataError

#: what is of the copy and not of what it was copied from
_COPIED = {"documents", "sequences", "tokens", "images", "histograms", "checksums"}
_OWN_FIELDS = _COPIED | {
    *("tool", "tool_version", "kind", "shard", "run", "runs", "quarantine", "filtered", "sources"),
    *("merged_from", "sampled_from"),
}
#: what a run counted of its records, which no document tells
_RUN_COUNTS = ("quarantine", "filtered")


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
    metadata = merged_metadata(readers)
    quarantine = [dataset_paths(reader.prefix).quarantine for reader in _of_other_runs(readers)]
    return copy_documents(output, selections, counts, metadata, quarantine=quarantine, workers=workers, advance=advance)


def tokenizer_fingerprint(metadata: Mapping[str, Any]) -> str | None:
    """Of the tokenizer that a dataset was made with; None where its metadata does not say."""
    tokenizer = metadata.get("tokenizer")
    found = tokenizer.get("fingerprint") if isinstance(tokenizer, dict) else metadata.get("tokenizer_fingerprint")
    return found if isinstance(found, str) else None


def merged_metadata(readers: Sequence[IndexedReader]) -> dict[str, Any]:
    """NAME.json of datasets together, but for what `copy_documents` counts: the runs that they came of, each once, each
    source once, and else what all agree on."""
    known = [reader.metadata for reader in readers]
    runs = {name: counts for reader in readers for name, counts in runs_of(reader).items()}
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
        **shared,
        "merged_from": origins,
        "runs": runs,
        **{name: _added(counts[name] for counts in runs.values()) for name in _RUN_COUNTS},
        "sources": merged_rows(row for metadata in known for row in source_rows(metadata)),
    }


def runs_of(reader: IndexedReader) -> dict[str, dict[str, dict[str, int]]]:
    """What each run of `preprocess` that a dataset came of counted as "quarantine" and "filtered".

    Runs that counted nothing are left out. A dataset that names no run is taken for one of its own.
    """
    known = reader.metadata
    told = _mapping(known["runs"]) if "runs" in known else {str(known.get("run") or _digest(known)): known}
    counted = {name: {kind: _added([_mapping(run).get(kind)]) for kind in _RUN_COUNTS} for name, run in told.items()}
    return {name: counts for name, counts in counted.items() if any(counts.values())}


def _digest(metadata: Mapping[str, Any]) -> str:
    """Of all that is known of a dataset, its checksums included."""
    return hashlib.sha256(json.dumps(metadata, sort_keys=True).encode()).hexdigest()


def _of_other_runs(readers: Sequence[IndexedReader]) -> Iterator[IndexedReader]:
    """Those that came of a run that none before them did: the others' records that could not be used are there already."""
    seen: set[str] = set()
    for reader in readers:
        runs = runs_of(reader).keys()
        if not runs or not runs <= seen:
            yield reader
        seen |= runs


def _added(counts: Iterable[Any]) -> dict[str, int]:
    """Counts by reason, added; what is no count is passed over."""
    total: Counter[str] = Counter()
    for by_reason in counts:
        total.update({reason: n for reason, n in _mapping(by_reason).items() if isinstance(n, int)})
    return dict(sorted(total.items()))


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
