"""Rows of parquet files: where the files are cut, and what some columns hold, a batch at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

from megatron_vlm.data.quarantine import Reason, Rejection
from megatron_vlm.data.records import Unit
from megatron_vlm.data.sources.file_names import is_remote
from megatron_vlm.data.sources.opening import open_input
from megatron_vlm.errors import DataError


@contextmanager
def _open(url: str) -> Iterator[Any]:
    import pyarrow.parquet as parquet

    with open_input(url) as stream:
        # Ahead only over a network: it holds a row group, which may be gigabytes.
        yield parquet.ParquetFile(stream, pre_buffer=is_remote(url), buffer_size=0 if is_remote(url) else 1 << 20)


def _damage() -> tuple[type[Exception], ...]:
    import pyarrow

    return (pyarrow.ArrowException, OSError, ValueError)


def column_names(url: str) -> list[str] | None:
    """The columns of a file, and at last the ones within structs, with dots ("meta.text"); None where the file is damaged
    or no parquet at all.
    """
    try:
        with _open(url) as file:
            leaves = [file.schema.column(n).path for n in range(len(file.schema.names))]
            names = list(file.schema_arrow.names)
            for leaf in leaves:
                if leaf not in names:
                    names.append(leaf)
            return names
    except _damage():
        return None


def require_columns(url: str, names: list[str], wanted: Iterable[str]) -> None:
    """Raises DataError where a column of `wanted` is not among `names`."""
    for name in wanted:
        if name not in names:
            raise DataError(f"{url} has no column {name!r}; it has {', '.join(names)}")


def cut_row_groups(url: str, size: int, target: int) -> list[Unit]:
    """Runs of row groups of about `target` bytes of the file; the file as one unit where it cannot be opened."""
    try:
        with _open(url) as file:
            metadata = file.metadata
            weights = [max(metadata.row_group(n).total_byte_size, 1) for n in range(metadata.num_row_groups)]
    except _damage():
        return [Unit(url, 0, 1, size)]  # reading it says what is wrong
    units: list[Unit] = []
    start = begin = done = 0
    for group, weight in enumerate(weights):
        done += weight
        end = size * done // sum(weights)  # bytes of the file, if they are spread as the bytes of the groups are
        if end - begin >= target or group == len(weights) - 1:
            units.append(Unit(url, start, group + 1, end - begin))
            start, begin = group + 1, end
    return units or [Unit(url, 0, 0, size)]


def read_rows(unit: Unit, wanted: list[str], rows_at_once: int) -> Iterator[tuple[int, dict[str, Any], int] | Rejection]:
    """Yield (row in the file, values by column, bytes_read) of a unit's rows, and at last a Rejection where the rest cannot
    be read. Columns of `wanted` that the file lacks are left out. Where a string is no UTF-8, the UnicodeDecodeError stands
    in its place; binary columns come as bytes.
    """
    import pyarrow

    done = total = first = 0
    try:
        with _open(unit.url) as file:
            metadata = file.metadata
            if unit.stop > metadata.num_row_groups:
                raise ValueError(f"it has {metadata.num_row_groups} row groups now, and had {unit.stop} or more")
            counts = [metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)]
            groups = range(unit.start, unit.stop)
            first, total = sum(counts[: unit.start]), sum(counts[n] for n in groups)
            present = [name for name in dict.fromkeys(wanted) if name in file.schema_arrow.names or _is_leaf(file, name)]
            # Group by group: a batch across a border would be lost to damage behind it.
            batches = (file.iter_batches(rows_at_once, row_groups=[n], columns=present, use_threads=False) for n in groups)
            for batch in chain.from_iterable(batches):
                table = pyarrow.Table.from_batches([batch])
                columns = {name: _values(_column(table, name)) for name in present}
                for place in range(batch.num_rows):
                    done += 1
                    values = {name: column[place] for name, column in columns.items()}
                    yield first + done - 1, values, unit.size * done // max(total, 1)
    except _damage() as error:
        detail = f"{type(error).__name__}: {error}"
        yield Rejection(unit.url, "", Reason.BROKEN_FILE, detail, first + done, done, unit.size)


def _is_leaf(file: Any, name: str) -> bool:
    return any(file.schema.column(n).path == name for n in range(len(file.schema.names)))


def _column(table: Any, name: str) -> Any:
    if name in table.column_names:
        return table.column(name)
    head, *rest = name.split(".")
    column = table.column(head)
    import pyarrow.compute

    for part in rest:
        column = pyarrow.compute.struct_field(column, part)
    return column


def _values(column: Any) -> list[Any]:
    try:
        values: list[Any] = column.to_pylist()
        return values
    except UnicodeDecodeError:
        return [_value(item) for item in column]


def _value(item: Any) -> Any:
    try:
        return item.as_py()
    except UnicodeDecodeError as error:
        return error
