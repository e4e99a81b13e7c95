"""The rows of a parquet file as maps of Python values, a run of row groups a unit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from megatron_vlm.data.quarantine import Reason
from megatron_vlm.data.records import Unit
from megatron_vlm.data.sources.defect import Defect
from megatron_vlm.data.sources.line_records import open_plain
from megatron_vlm.errors import DataError

BATCH_BYTES = 16 << 20  # of rows that are in memory as Python values
MOST_ROWS = 1024
READ_AHEAD = 1 << 20  # bytes of a column that are read at once, but at least a page, which may be a whole row group's


@dataclass(frozen=True, slots=True)
class ParquetRow:
    """`value` is the row, or what is wrong with it; `offset` its number in the file, `bytes_read` of the unit's size."""

    value: dict[str, Any] | Defect
    offset: int
    bytes_read: int


@contextmanager
def _opened(url: str) -> Iterator[Any]:
    import pyarrow.parquet

    with open_plain(url) as raw:
        yield pyarrow.parquet.ParquetFile(raw, buffer_size=READ_AHEAD)


def parquet_units(url: str, size: int, target: int, needed: Sequence[str] = ()) -> list[Unit]:
    """Runs of row groups of about `target` stored bytes.

    Raises DataError where `url` is no parquet file, or has none of the columns `needed`, where any are named.
    """
    import pyarrow

    try:
        with _opened(url) as file:
            names = file.schema_arrow.names
            weights = [_stored_bytes(file.metadata.row_group(group)) for group in range(file.metadata.num_row_groups)]
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{url} cannot be read as a parquet file: {error}; fetch it again, or check what it is") from error
    if needed and not set(needed) & set(names):
        wanted, found = (", ".join(map(repr, several)) for several in (needed, names))
        raise DataError(
            f"{url} has none of the columns {wanted}; it has {found or 'none'}. Rename one, or check what it holds"
        )
    cuts = [0]
    filled = 0
    for group, weight in enumerate(weights, start=1):
        filled += weight
        if filled >= target and group < len(weights):
            cuts.append(group)
            filled = 0
    cuts.append(len(weights))
    total = sum(weights) or 1
    # the footer and the padding belong to no row group: shared out, so that the units' sizes add up to the file's
    ends = [size * sum(weights[:cut]) // total for cut in cuts[:-1]] + [size]
    runs = zip(cuts, cuts[1:], ends, ends[1:], strict=False)
    return [Unit(url, first, after, end - begin) for first, after, begin, end in runs]


def _stored_bytes(group: Any) -> int:
    return sum(group.column(index).total_compressed_size for index in range(group.num_columns))


def read_parquet_rows(unit: Unit, columns: Sequence[str] | None = None) -> Iterator[ParquetRow]:
    """The rows of a unit's row groups, in order; of `columns` those that the file has, or all of them.

    A row group that cannot be read comes as one BROKEN_FILE, and the next is read: each is found through the footer.
    """
    import pyarrow

    unreadable = (pyarrow.ArrowException, OSError)
    try:
        with _opened(unit.url) as file:
            groups = range(unit.start, min(unit.stop, file.metadata.num_row_groups))
            counts = [file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups)]
            names = None if columns is None else [name for name in file.schema_arrow.names if name in set(columns)]
            first = sum(counts[: unit.start])
            total = sum(counts[group] for group in groups) or 1
            begin = first
            for group in groups:
                row, end = begin, begin + counts[group]
                try:
                    rows = _batch_rows(file.metadata.row_group(group))
                    # no threads: there is a worker for each core already
                    for batch in file.iter_batches(rows, row_groups=[group], columns=names, use_threads=False):
                        for value in _values(batch):
                            row += 1
                            yield ParquetRow(value, row - 1, unit.size * (row - first) // total)
                    if row != end:
                        raise OSError(f"{row - begin} of its {end - begin} rows were there")
                except unreadable as error:
                    defect = Defect(Reason.BROKEN_FILE, f"row group {group}: {error}")
                    yield ParquetRow(defect, row, unit.size * (end - first) // total)
                begin = end
    except unreadable as error:
        yield ParquetRow(Defect(Reason.BROKEN_FILE, str(error)), 0, unit.size)


def _batch_rows(group: Any) -> int:
    return min(MOST_ROWS, max(1, BATCH_BYTES * group.num_rows // max(1, group.total_byte_size)))


def _values(batch: Any) -> Iterator[dict[str, Any] | Defect]:
    """The rows of a batch. What Python has no value for, such as text that is no UTF-8, shows only here; it costs its row."""
    try:
        yield from batch.to_pylist()
        return
    except (ValueError, ArithmeticError):
        pass
    for index in range(batch.num_rows):
        try:
            yield batch.slice(index, 1).to_pylist()[0]
        except UnicodeDecodeError as error:
            yield Defect(Reason.INVALID_UNICODE, str(error))
        except (ValueError, ArithmeticError) as error:
            yield Defect(Reason.BROKEN_FILE, f"a value that cannot be read: {error}")
