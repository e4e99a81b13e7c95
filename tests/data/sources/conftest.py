"""Reading a file through a source, with what every source promises checked on the way."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest

from megatron_vlm.data.quarantine import Rejection
from megatron_vlm.data.records import Record, Source

Outcome = Record | Rejection
ReadSource = Callable[..., list[Outcome]]


@pytest.fixture(scope="session")
def read_source() -> ReadSource:
    """All outcomes of a file that is cut into units of about `target` bytes."""

    def read(source: Source, path: Path | str, target: int = 1 << 40) -> list[Outcome]:
        size = Path(path).stat().st_size
        assert pickle.loads(pickle.dumps(source)) == source
        units = source.units(str(path), size, target)
        assert sum(unit.size for unit in units) == size
        found: list[Outcome] = []
        for unit in units:
            outcomes = list(source.read(unit))
            assert [outcome.number for outcome in outcomes] == list(range(len(outcomes)))
            progress = [outcome.bytes_read for outcome in outcomes]
            assert progress == sorted(progress)
            assert all(0 <= count <= unit.size for count in progress)
            for outcome in outcomes:
                outcome.key.encode()  # it can be written down
                if isinstance(outcome, Rejection):
                    assert outcome.file == str(path)
                    assert outcome.detail
            found += outcomes
        return found

    return read
