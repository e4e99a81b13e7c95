"""The files that a dataset came of, as NAME.json lists them: a row each, with its path, its sha256 and counts.

`records` and `quarantined` of a row are of the file, as the run that read it counted them; `documents` are those of it that
are in this dataset, and are left out where that is not known.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from megatron_vlm.data.indexed_reader import IndexedReader


def source_rows(metadata: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of a NAME.json; none where it has none."""
    rows = metadata.get("sources")
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []


def merged_rows(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each file once, with the documents of all its rows.

    Where runs read a file in different ways and do not agree on its records, each keeps its row.
    """
    files: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        files.setdefault(json.dumps(_file(row), sort_keys=True), []).append(row)
    return [_with_documents(same[0], [row.get("documents") for row in same]) for same in files.values()]


def drawn_rows(reader: IndexedReader, documents: npt.NDArray[np.int64] | range) -> list[dict[str, Any]]:
    """The rows of a dataset, with how many of `documents`, which are numbers of its documents, each file has.

    That is known where `preprocess` wrote the dataset, in the order of the files; a merged one has them in any order.
    """
    rows = source_rows(reader.metadata)
    counts = [row.get("documents") for row in rows]
    known = [count for count in counts if isinstance(count, int)]
    if "merged_from" in reader.metadata or len(known) < len(rows) or sum(known) != reader.document_count:
        return [_file(row) for row in rows]
    files = np.searchsorted(np.cumsum(known), np.asarray(documents), side="right")
    drawn = np.bincount(files, minlength=len(rows)).tolist()
    return [{**row, "documents": number} for row, number in zip(rows, drawn, strict=True)]


def _with_documents(row: dict[str, Any], counts: list[Any]) -> dict[str, Any]:
    """`row` with the sum of the counts, which is unknown where one is."""
    known = [count for count in counts if isinstance(count, int)]
    return {**row, "documents": sum(known)} if len(known) == len(counts) else _file(row)


def _file(row: dict[str, Any]) -> dict[str, Any]:
    """What is of the file alone."""
    return {name: value for name, value in row.items() if name != "documents"}
