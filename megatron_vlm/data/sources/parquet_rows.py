"""Rows of parquet files: where the files are cut, and what some columns hold, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from megatron_vlm.data.quarantine import Reason
from megatron_vlm.data.records import Unit
from megatron_vlm.data.sources.file_names import is_remote
from megatron_vlm.data.sources.opening import open_input
from megatron_vlm.data.sources.unusable import Unusable
from megatron_vlm.errors import DataError

MAGIC = b"PAR1"
BATCH_BYTES = 16 << 20  # of rows that are in memory as Python values
MOST_ROWS = 1024
READ_AHEAD = 1 << 20  # bytes of a column that are read at once, but at least a page, which may be a whole row group's


@dataclass(frozen=True, slots=True)
class ParquetRow:
    """What stands where a row is expected.

    Attributes:
        value: values by column, or why the rest of a row group cannot be read. A value that Python cannot hold, such as
            text that is no UTF-8, is an Unusable.
        offset: its number in the file.
        bytes_read: of the unit's size, up to its end.
    """

    value: dict[str, Any] | Unusable
    offset: int
    bytes_read: int


@contextmanager
def _open(url: str) -> Iterator[Any]:
    import pyarrow.parquet

    with open_input(url) as stream:
        # Ahead only over a network: it holds a row group, which may be gigabytes.
        remote = is_remote(url)
        yield pyarrow.parquet.ParquetFile(stream, pre_buffer=remote, buffer_size=0 if remote else READ_AHEAD)


def _damage() -> tuple[type[Exception], ...]:
    import pyarrow

    return (pyarrow.ArrowException, OSError, ValueError, ArithmeticError)


def require_columns(url: str, names: list[str], wanted: Iterable[str]) -> None:
    """Raises DataError where a column of `wanted` is not among `names`."""
    for name in wanted:
        if name not in names:
            raise DataError(f"{url} has no column {name!r}; it has {', '.join(names)}")


def cut_row_groups(url: str, size: int, target: int, check: Callable[[list[str]], None]) -> list[Unit]:
    """Runs of row groups of about `target` bytes of the file; the file as one unit where it is damaged.

    `check` gets the names of the columns, and at last of those within structs, with dots ("meta.text").

    Raises DataError where `url` is no parquet file, and what `check` raises.
    """
    try:
        with _open(url) as file:
            names = list(_columns(file.schema_arrow))
            # As they are unpacked. What the columns say of themselves is better left: pyarrow aborts where that is damaged.
            weights = [max(1, file.metadata.row_group(n).total_byte_size) for n in range(file.metadata.num_row_groups)]
    except _damage() as error:
        with open_input(url) as stream:
            if stream.read(len(MAGIC)) == MAGIC:
                return [Unit(url, 0, 1, size)]  # reading it says what is wrong
        raise DataError(f"{url} is no parquet file: {error}; fetch it again, or check what it is") from error
    check(names)
    units: list[Unit] = []
    start = begin = done = 0
    for group, weight in enumerate(weights):
        done += weight
        end = size * done // sum(weights)  # bytes of the file: what is in no row group is shared out
        if end - begin >= target or group == len(weights) - 1:
            units.append(Unit(url, start, group + 1, end - begin))
            start, begin = group + 1, end
    return units or [Unit(url, 0, 0, size)]


def read_row_groups(unit: Unit, wanted: Sequence[str] | None = None) -> Iterator[ParquetRow]:
    """The rows of a unit's row groups, in order; of the columns `wanted` those that the file has, or all of them.

    The rest of a row group that cannot be read comes as one BROKEN_FILE, and the next group is read: each is found through
    the footer.
    """
    first = 0
    try:
        with _open(unit.url) as file:
            metadata = file.metadata
            if unit.stop > metadata.num_row_groups:
                raise ValueError(f"it has {metadata.num_row_groups} row groups now, and had {unit.stop} or more")
            counts = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
            if min(counts, default=0) < 0:
                raise ValueError(f"a row group of {min(counts)} rows")
            first = begin = sum(counts[: unit.start])
            total = sum(counts[unit.start : unit.stop])
            known = _columns(file.schema_arrow)
            names = list(file.schema_arrow.names) if wanted is None else list(dict.fromkeys(wanted))
            paths = {name: known[name] for name in names if name in known}
            for group in range(unit.start, unit.stop):
                row, end = begin, begin + counts[group]
                try:
                    rows = _batch_rows(metadata.row_group(group))
                    # no threads: there is a worker for each core already
                    for batch in file.iter_batches(rows, row_groups=[group], columns=list(paths), use_threads=False):
                        columns = {name: _values(_column(batch, path)) for name, path in paths.items()}
                        for place in range(batch.num_rows):
                            values = {name: column[place] for name, column in columns.items()}
                            yield ParquetRow(values, row, unit.size * (min(row + 1, end) - first) // max(total, 1))
                            row += 1
                    if row != end:
                        raise ValueError(f"{row - begin} of its {end - begin} rows were there")
                except _damage() as error:
                    defect = Unusable(Reason.BROKEN_FILE, f"row group {group}: {error}")
                    yield ParquetRow(defect, row, unit.size * (end - first) // max(total, 1))
                begin = end
    except _damage() as error:
        yield ParquetRow(Unusable(Reason.BROKEN_FILE, str(error)), first, unit.size)


def _batch_rows(group: Any) -> int:
    return min(MOST_ROWS, max(1, BATCH_BYTES * group.num_rows // max(1, group.total_byte_size)))


def _columns(schema: Any) -> dict[str, tuple[str, ...]]:
    """The path of each column, by its name; those within structs at last."""
    import pyarrow

    paths: dict[str, tuple[str, ...]] = {name: (name,) for name in schema.names}

    def add(kind: Any, path: tuple[str, ...]) -> None:
        for index in range(kind.num_fields if pyarrow.types.is_struct(kind) else 0):
            inner = (*path, kind.field(index).name)
            paths.setdefault(".".join(inner), inner)
            add(kind.field(index).type, inner)

    for field in schema:
        add(field.type, (field.name,))
    return paths


def _column(batch: Any, path: tuple[str, ...]) -> Any:
    import pyarrow.compute

    column = batch.column(batch.schema.names.index(path[0]))
    for part in path[1:]:
        column = pyarrow.compute.struct_field(column, part)
    return column


def _values(column: Any) -> list[Any]:
    """Python's values. What it has none for, such as text that is no UTF-8, shows only here; it costs its row alone."""
    try:
        values: list[Any] = column.to_pylist()
        return values
    except (ValueError, ArithmeticError):
        return [_value(item) for item in column]


def _value(item: Any) -> Any:
    try:
        return item.as_py()
    except UnicodeDecodeError as error:
        return Unusable(Reason.INVALID_UNICODE, str(error))
    except (ValueError, ArithmeticError) as error:
        return Unusable(Reason.BROKEN_FILE, f"a value that cannot be read: {error}")
