"""Held-out documents are measured in the shape that was trained last: length of rows, size of pictures, tokens a picture."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from megatron_vlm.config.loading import load_config
from megatron_vlm.ops.assemble import MODALITY_TEXT
from megatron_vlm.training.loop import Run
from megatron_vlm.training.scoring import Scored, score_documents
from megatron_vlm.training.validation import trained_shape
from tests.distributed.ranks import run_ranks
from tests.distributed.tiny_run import PP2, configuration

pytestmark = pytest.mark.distributed

STAGES = (
    "[{name: first, until_steps: 2, sources: {text: 1.0}}, "
    "{name: second, sources: {text: 1.0, captions: 1.0}, measure: samples, sequence_length: 64, image_size: 128, "
    "image_pool: 4}]"
)


def _configuration(data: Path, parallel: dict[str, Any] | None = None) -> Any:
    held_out = f"{{text: '{data / 'text'}', captions: '{data / 'captions'}'}}"
    fields = {"curriculum.stages": STAGES, "data.validation": held_out, "data.validation_documents": 1}
    return configuration(data, parallel, **fields)


def test_a_border_is_measured_in_the_shape_before_it(data: Path) -> None:
    config = _configuration(data)
    assert [trained_shape(config, step).stage for step in (0, 1, 2, 3, 5)] == [0, 0, 0, 1, 1]


def test_weights_for_no_run_in_particular_are_measured_as_a_run_begins() -> None:
    config = load_config(preset="tiny")
    assert not config.segments
    begun = replace(config, schedule=replace(config.schedule, train_steps=100))
    assert trained_shape(config, 0) == begun.shape_of(0)


def _documents(run: Run) -> dict[str, tuple[int, int, set[tuple[int, ...]], set[int]]]:
    """Of each source: pieces, positions, shapes of pictures, and placeholders of a document."""
    found = {}
    for name, documents in run.validation.documents.items():
        shapes = {picture.shape for d in documents for picture in d.pictures}
        placeholders = {int((d.segment.ids == run.tokens.image_token_id).sum()) for d in documents}
        found[name] = len(documents), sum(len(d.segment.ids) - 1 for d in documents), shapes, placeholders
    return found


def _measured(config: Any) -> tuple[list[dict[str, float]], list[Any], bool]:
    run = Run(config)
    first, second = config.shape_of(0), config.shape_of(2)
    losses, seen = [], []
    for shape in (first, second, first):
        losses.append(run.validation.measure(run.engine, shape))
        seen.append(_documents(run))
    kept = run.validation.documents
    run.validation.measure(run.engine, replace(first, stage=1, micro_batch_size=1, global_batch_size=16))
    return losses, seen, run.validation.documents is kept


@pytest.fixture(scope="module")
def alone(data: Path) -> Any:
    return run_ranks(1, _measured, _configuration(data))[0]


def test_documents_are_those_of_the_shape(alone: Any) -> None:
    _, (first, second, again), kept = alone
    assert first == again
    assert kept, "another batch is no other shape of documents"
    assert first["captions"][2:] == ({(64, 64, 3)}, {4})
    assert second["captions"][2:] == ({(128, 128, 3)}, {1})
    assert first["text"][1] == second["text"][1], "the same texts"
    assert second["text"][0] > first["text"][0], "in more pieces"


def test_losses_come_back_with_the_shape(alone: Any) -> None:
    first, second, again = alone[0]
    assert first == again
    assert first.keys() == second.keys() == {"text", "captions"}
    assert first["captions"] != second["captions"]


def test_a_pipeline_measures_the_same(data: Path, alone: Any) -> None:
    for losses, _, _ in run_ranks(2, _measured, _configuration(data, PP2)):
        for ours, theirs in zip(losses, alone[0], strict=True):
            assert ours == pytest.approx(theirs, abs=2e-6)


def _too_long(config: Any) -> str:
    run = Run(config)
    document = next(d for d in run.validation.documents["text"] if len(d.segment.ids) > 100)
    assert document.segment.modality == MODALITY_TEXT
    shape = config.shape_of(2)
    try:
        score_documents(run.engine, shape, run.topology, run.tokens, [Scored(document.segment)])
    except ValueError as refusal:
        return str(refusal)
    return "taken"


def test_documents_of_longer_rows_are_refused(data: Path) -> None:
    assert run_ranks(1, _too_long, _configuration(data))[0].endswith("positions, a row 64")
