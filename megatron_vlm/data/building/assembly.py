"""Parts into datasets, in the order of the sources: the one place that sees all of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from megatron_vlm.data.building.options import BuildOptions, Duplicates
from megatron_vlm.data.building.part import Part
from megatron_vlm.data.building.prepared import KEY_BYTES, NO_KEY
from megatron_vlm.data.building.statistics import Statistics
from megatron_vlm.data.indexed_format import dataset_paths
from megatron_vlm.data.indexed_writer import IndexedWriter
from megatron_vlm.errors import DataError

COPY_BYTES = 8 << 20
MORE_RECORDS_THAN_A_UNIT = 1 << 40


def output_prefixes(prefix: Path, part: str, shard: int | None) -> Path:
    """PREFIX, PREFIX_train, PREFIX_00000 or PREFIX_train_00000."""
    names = [prefix.name, *([part] if part else []), *([f"{shard:05d}"] if shard is not None else [])]
    return prefix.with_name("_".join(names))


@dataclass
class Output:
    """A dataset that was written. `documents_of` counts its documents by the number of the part that they are of."""

    prefix: Path
    part: str
    shard: int | None
    writer: IndexedWriter
    statistics: Statistics = field(default_factory=Statistics)
    documents_of: Counter[int] = field(default_factory=Counter)


class Assembly:
    """Writes the datasets aside; `outputs` are finalized by the caller, or aborted by `abort`.

    Memory: a block of COPY_BYTES and the columns of one part; with duplicates to find, 40 bytes a picture besides.
    """

    def __init__(self, prefix: Path, dtype: np.dtype[Any], multimodal: bool, options: BuildOptions) -> None:
        self.prefix, self.dtype, self.multimodal, self.options = prefix, dtype, multimodal, options
        self.outputs: list[Output] = []
        self.duplicates = 0  # records
        self._current: dict[int, Output] = {}

    def add_all(self, parts: Sequence[Part], advance: Callable[[int], object]) -> list[int]:
        """Copy the documents of all parts; how many documents of each part were kept. `advance` is told of bytes."""
        if len(parts) == 1 and self._takes_all():
            return [self._adopt(parts[0], advance)]
        drop = _duplicate_records(parts) if self.options.duplicates is not Duplicates.KEEP else None
        for name in range(len(self.options.outputs())):
            self._output(name)  # in the order in which they were named; an empty part of a split is a dataset too
        return [self._add(number, part, drop, advance) for number, part in enumerate(parts)]

    def _takes_all(self) -> bool:
        """Whether every document goes to one dataset."""
        options = self.options
        return options.duplicates is Duplicates.KEEP and options.split is None and options.shard_bytes is None

    def _adopt(self, part: Part, advance: Callable[[int], object]) -> int:
        """The only part is the dataset: its file is moved rather than copied."""
        output, columns = self._output(0), part.columns()
        lengths, modes, facts, counts = (columns[name] for name in ("lengths", "modes", "facts", "sequences"))
        output.writer.adopt(part.data_path, part.counts.digests, lengths, modes, facts, counts)
        output.statistics.add(lengths, modes, facts, counts)
        output.documents_of[0] = len(counts)
        advance(part.counts.bytes)
        return len(counts)

    def refuse_older_shards(self) -> None:
        """A pattern over the shards must not find those of an earlier run, which had more of them, besides these.

        Raises DataError.
        """
        for output in self._current.values():
            if output.shard is not None:
                after = dataset_paths(output_prefixes(self.prefix, output.part, output.shard + 1)).index
                if after.exists():
                    raise DataError(
                        f"{after} is there from an earlier run, and the last shard of this one is {output.prefix.name}: "
                        f"remove the shards after that one and run the same command again, or choose another output"
                    )

    def abort(self) -> None:
        for output in self.outputs:
            output.writer.abort()

    def _add(self, number: int, part: Part, drop: npt.NDArray[np.int64] | None, advance: Callable[[int], object]) -> int:
        columns = part.columns()
        destinations = columns["parts"].astype(np.int16)
        if drop is not None:
            records = columns["records"] + number * MORE_RECORDS_THAN_A_UNIT
            dropped = np.isin(records, _of_part(drop, number))
            destinations[dropped] = -1
            self.duplicates += len(np.unique(records[dropped]))
        first_sequence = np.concatenate([[0], np.cumsum(columns["sequences"], dtype=np.int64)])
        sequence_bytes = np.concatenate([[0], np.cumsum(columns["lengths"], dtype=np.int64)]) * self.dtype.itemsize
        first_byte = sequence_bytes[first_sequence]
        data = memoryview(part.data())
        for begin, end in _runs(destinations):
            if destinations[begin] >= 0:
                for start, stop in self._pieces(int(destinations[begin]), first_byte, begin, end):
                    sequences = slice(first_sequence[start], first_sequence[stop])
                    output = self._output(int(destinations[begin]))
                    lengths, modes, facts = (columns[name][sequences] for name in ("lengths", "modes", "facts"))
                    counts = columns["sequences"][start:stop]
                    output.writer.add_documents(data[first_byte[start] : first_byte[stop]], lengths, modes, facts, counts)
                    output.statistics.add(lengths, modes, facts, counts)
                    output.documents_of[number] += stop - start
            advance(int(first_byte[end] - first_byte[begin]))
        return int((destinations >= 0).sum())

    def _pieces(self, name: int, first_byte: npt.NDArray[np.int64], begin: int, end: int) -> Iterator[tuple[int, int]]:
        """Documents [begin, end) in pieces that are copied at once; closes a shard that the next piece would overfill."""
        limit = self.options.shard_bytes
        while begin < end:
            room = COPY_BYTES
            if limit is not None:
                output = self._output(name)
                left = limit - output.writer.bytes
                if output.writer.documents and first_byte[begin + 1] - first_byte[begin] > left:
                    self._current.pop(name).writer.rest()
                    continue
                room = min(room, max(left, 1))
            stop = int(np.searchsorted(first_byte, first_byte[begin] + room, side="right")) - 1
            stop = min(max(stop, begin + 1), end)
            yield begin, stop
            begin = stop

    def _output(self, name: int) -> Output:
        if name not in self._current:
            part = self.options.outputs()[name]
            shards = sum(output.part == part for output in self.outputs)
            shard = None if self.options.shard_bytes is None else shards
            prefix = output_prefixes(self.prefix, part, shard)
            writer = IndexedWriter(prefix, self.dtype, self.multimodal, facts=True)
            self._current[name] = Output(prefix, part, shard, writer)
            self.outputs.append(self._current[name])
        return self._current[name]


def _runs(values: npt.NDArray[Any]) -> Iterator[tuple[int, int]]:
    """[begin, end) of each run of equal values."""
    borders = np.flatnonzero(np.diff(values)) + 1
    edges = [0, *borders.tolist(), len(values)] if len(values) else [0]
    yield from zip(edges[:-1], edges[1:], strict=True)


def _of_part(drop: npt.NDArray[np.int64], number: int) -> npt.NDArray[np.int64]:
    """What a part has of `drop`, which is sorted. Looking through all of it for every part would take parts x duplicates."""
    begin, end = np.searchsorted(drop, [number * MORE_RECORDS_THAN_A_UNIT, (number + 1) * MORE_RECORDS_THAN_A_UNIT])
    return drop[begin:end]


def _duplicate_records(parts: Sequence[Part]) -> npt.NDArray[np.int64]:
    """The records whose picture an earlier record has, sorted; numbered over all parts."""
    keys, records = [np.empty(0, f"V{KEY_BYTES}")], [np.empty(0, np.int64)]
    for number, part in enumerate(parts):
        columns = part.columns()
        keyed = columns["keys"] != np.void(NO_KEY)
        keys.append(columns["keys"][keyed])
        records.append(columns["records"][keyed] + number * MORE_RECORDS_THAN_A_UNIT)
    all_records = np.concatenate(records)
    # numpy sorts no voids: 16 bytes are two integers
    halves = np.concatenate(keys).view("<u8").reshape(-1, 2)
    order = np.lexsort((all_records, halves[:, 1], halves[:, 0]))
    halves, all_records = halves[order], all_records[order]
    same = np.concatenate([[False], (halves[1:] == halves[:-1]).all(axis=1)]) if len(halves) else np.empty(0, bool)
    first = all_records[np.maximum.accumulate(np.where(same, 0, np.arange(len(same))))] if len(same) else all_records
    return np.unique(all_records[same & (all_records != first)])


def merged_filters(parts: Sequence[Part], duplicates: int) -> dict[str, int]:
    """Sound records that were left out, by reason."""
    counts: Counter[str] = Counter()
    for part in parts:
        counts.update(part.counts.filtered)
    if duplicates:
        counts["duplicate_image"] += duplicates
    return dict(sorted(counts.items()))
