"""A part of a dataset, drawn by a seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from megatron_vlm import __version__
from megatron_vlm.data.document_copy import Selection, copy_documents, count_selected
from megatron_vlm.data.indexed_reader import IndexedReader
from megatron_vlm.data.order import epoch_order
from megatron_vlm.data.source_rows import drawn_rows
from megatron_vlm.errors import ConfigError

#: what is true of the dataset that is drawn from, and not of what is drawn
_NOT_OF_A_SAMPLE = ("shard", "run", "runs")


@dataclass(frozen=True, slots=True)
class SampleSize:
    """How much to draw: exactly one of a number of documents, of text tokens, or a fraction of the documents."""

    documents: int | None = None
    tokens: int | None = None
    fraction: float | None = None

    def __post_init__(self) -> None:
        """Raises ConfigError unless one is given, and is possible."""
        if sum(size is not None for size in (self.documents, self.tokens, self.fraction)) != 1:
            raise ConfigError("say how much to draw by one of documents, tokens and fraction")
        for name, count in (("documents", self.documents), ("tokens", self.tokens)):
            if count is not None and count < 1:
                raise ConfigError(f"{name} is {count}; draw 1 or more")
        if self.fraction is not None and not 0 < self.fraction <= 1:
            raise ConfigError(f"fraction is {self.fraction}; draw more than 0 and at most 1")

    def as_json(self) -> dict[str, float]:
        """The one that is given, by its name."""
        given = {"documents": self.documents, "tokens": self.tokens, "fraction": self.fraction}
        return {name: size for name, size in given.items() if size is not None}


def draw_documents(reader: IndexedReader, size: SampleSize, seed: int) -> npt.NDArray[np.int64]:
    """Numbers of documents drawn without replacement, int64[d] in ascending order.

    A larger sample of the same seed holds every smaller one. By tokens, so many documents are drawn that they have at
    least as many, if the dataset has them. A fraction is of the documents, rounded, and never none.

    Raises ConfigError for more documents than there are.
    """
    total = reader.document_count
    order = epoch_order(np.arange(total), seed, "sample", 0)
    if size.tokens is not None:
        reached = np.cumsum(reader.document_text_tokens()[order])
        count = min(int(np.searchsorted(reached, size.tokens)) + 1, total)
    elif size.fraction is not None:
        count = min(max(round(size.fraction * total), 1), total)
    else:
        count = size.documents or 0
        if count > total:
            raise ConfigError(f"{reader.prefix} has {total} documents, from which {count} cannot be drawn: ask for fewer")
    return np.sort(order[:count])


def sample_dataset(
    prefix: Path | str,
    output: Path | str,
    size: SampleSize,
    *,
    seed: int = 0,
    workers: int | None = None,
    advance: Callable[[int], object] | None = None,
    total: Callable[[int], object] | None = None,
) -> dict[str, Any]:
    """Write the documents that `draw_documents` draws, in their order in the dataset, as one of their own.

    `workers`, `advance` and `total`, what is returned and what is raised are those of
    `megatron_vlm.data.merging.merge_datasets`.
    """
    reader = IndexedReader(prefix)
    selection = Selection(reader, draw_documents(reader, size, seed))
    counts = count_selected([selection])
    if total is not None:
        total(2 * counts.data_bytes)
    metadata = _metadata(selection, {"drawn": size.as_json(), "seed": seed})
    return copy_documents(output, [selection], counts, metadata, workers=workers, advance=advance)


def _metadata(selection: Selection, drawn: dict[str, Any]) -> dict[str, Any]:
    """That of the dataset, but for what `copy_documents` counts. What was set aside or filtered out was so from the dataset,
    not from this."""
    reader = selection.reader
    kept = {name: value for name, value in reader.metadata.items() if name not in _NOT_OF_A_SAMPLE}
    origin = {"prefix": str(reader.prefix), "documents": reader.document_count, "fingerprint": reader.fingerprint, **drawn}
    return {
        "kind": "sample",
        **kept,
        "tool": "megatron_vlm",
        "tool_version": __version__,
        "sampled_from": origin,
        "quarantine": {},
        "filtered": {},
        "sources": drawn_rows(reader, selection.documents),
    }
