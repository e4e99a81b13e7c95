"""A run over a dataset some of whose pictures were damaged goes on, alike in every layout, and says what it met."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from megatron_vlm.data.indexed_reader import IndexedReader
from megatron_vlm.errors import DataError
from megatron_vlm.training.loop import Run
from tests.distributed.ranks import run_ranks
from tests.distributed.tiny_run import PP2, TP2, configuration

pytestmark = pytest.mark.distributed

STEPS = 3
#: every third document's picture
BROKEN = 3


@pytest.fixture(scope="module")
def damaged(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled data with pictures overwritten in the middle, as a bad disk would."""
    folder = tmp_path_factory.mktemp("damaged")
    for file in data.iterdir():
        shutil.copy(file, folder)
    reader = IndexedReader(folder / "captions")
    with (folder / "captions.bin").open("r+b") as file:
        for document in range(0, reader.document_count, BROKEN):
            sequence = reader.document_sequences(document)[0]
            file.seek(int(reader.sequence_pointers[sequence]) + 4)
            file.write(b"no picture at all")
    return folder


def _records(data: Path, folder: Path, parallel: dict[str, Any], policy: str) -> list[dict[str, Any]]:
    """The metrics of a run whose steps all have pictures."""
    fields = {"data.pictures.broken": policy, "schedule.train_steps": STEPS, "logging.directory": folder}
    stages = "[{name: both, sources: {text: 0.5, captions: 0.5}}]"
    config = configuration(data, parallel, **fields, **{"curriculum.stages": stages, "logging.eval_interval": 0})
    assert Run(config).train().exit_code == 0
    lines = (folder / "metrics.jsonl").read_text().splitlines() if folder.exists() else []
    return [json.loads(line) for line in lines]


def _of(kind: str, records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [record for record in records if record["kind"] == kind]


@pytest.fixture(scope="module", params=["text", "skip"])
def alone(request: pytest.FixtureRequest, damaged: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("alone")
    return request.param, run_ranks(1, _records, damaged, folder, {}, request.param)[0]


def test_every_broken_picture_is_named(alone: Any, damaged: Path) -> None:
    policy, records = alone
    told = _of("broken_pictures", records)
    assert {record["policy"] for record in told} == {policy}
    assert sum(record["count"] for record in told) >= STEPS
    for record in told:
        assert record["count"] == len(record["pictures"])
        for picture in record["pictures"]:
            assert picture["source"] == str(damaged / "captions")
            assert picture["document"] % BROKEN == 0
            assert picture["reason"] == "a header that Pillow cannot read"


def test_less_is_learnt_and_the_rest_still_is(alone: Any, data: Path, tmp_path: Path) -> None:
    policy, records = alone
    whole = _of("train", run_ranks(1, _records, data, tmp_path, {}, policy)[0])
    broken = {record["step"]: record["count"] for record in _of("broken_pictures", records)}
    for ours, theirs in zip(_of("train", records), whole, strict=True):
        lost = broken.get(ours["step"], 0)
        assert ours["source_tokens"] == theirs["source_tokens"], "the plan does not depend on what decodes"
        ours, theirs = ours["trained_tokens"], theirs["trained_tokens"]
        if policy == "text":
            # of each picture the first word behind it; its other words are text now
            assert sum(ours.values()) == sum(theirs.values()) - lost
        else:
            assert ours["text"] == theirs["text"]
        assert (ours["caption"] < theirs["caption"]) == (lost > 0)


@pytest.mark.parametrize(
    ("ranks", "parallel"),
    [
        pytest.param(2, TP2, marks=pytest.mark.slow),
        pytest.param(2, PP2, marks=pytest.mark.slow),
        (2, {"overlap_grad_reduce": True}),
        (4, {**TP2, **PP2, "sequence_parallel": True}),
    ],
)
def test_every_layout_does_the_same(ranks: int, parallel: dict[str, Any], alone: Any, damaged: Path, tmp_path: Path) -> None:
    policy, reference = alone
    records = run_ranks(ranks, _records, damaged, tmp_path, parallel, policy)[0]
    assert _of("broken_pictures", records) == _of("broken_pictures", reference)
    for ours, theirs in zip(_of("train", records), _of("train", reference), strict=True):
        assert ours["trained_tokens"] == theirs["trained_tokens"]
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=2e-6)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=3e-5)


def _refused(data: Path, folder: Path) -> str:
    try:
        _records(data, folder, PP2, "stop")
    except DataError as error:
        return str(error)
    return "went on"


def test_stop_ends_every_rank_with_the_same_words(damaged: Path, tmp_path: Path) -> None:
    first, second = run_ranks(2, _refused, damaged, tmp_path)
    assert first == second, "the second rank holds no encoder"
    assert "captions, document" in first
    assert "set data.pictures.broken to text or skip" in first
