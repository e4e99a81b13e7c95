"""The steps of a run come in order, and the same to the bit, from any number of workers."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from megatron_vlm.config.loader import LoaderConfig
from megatron_vlm.data.loader.batch_loader import BatchLoader
from megatron_vlm.data.step_plan import StepPlan
from megatron_vlm.errors import DataError, UserError
from tests.data.loader.cases import Case, assert_is, everything, expected, make_case


def loader(case: Case, workers: int, decode: bool = True, **options) -> BatchLoader:
    config = LoaderConfig(workers=workers, prefetch_steps=options.pop("prefetch_steps", 2))
    plans = options.pop("plans", None) or iter(case.plans)
    return BatchLoader(case.spec(decode), plans, options.pop("share", everything), config, case.shapes, **options)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_every_step_is_what_numpy_and_pillow_make_of_it(tmp_path: Path, workers: int) -> None:
    case = make_case(tmp_path)
    seen = 0
    with loader(case, workers) as steps:
        for step, plan in zip(steps, case.plans, strict=True):
            assert step.plan is plan
            assert_is(step.batches, expected(case, plan))
            assert step.batches[0].pictures == len(step.batches[0].pixels)
            assert step.waited >= 0
            seen += 1
        assert len(steps.pids) == workers
    assert seen == len(case.plans) == 8


def test_a_rank_makes_its_share_alone(tmp_path: Path) -> None:
    case = make_case(tmp_path)
    half = {rank: lambda plan, r=rank: list(range(r, len(plan.packs), 2)) for rank in (0, 1)}
    for rank, share in half.items():
        with loader(case, 2, share=share, ranks=2) as steps:
            for step, plan in zip(steps, case.plans, strict=True):
                mine = StepPlan(plan.step, plan.shape, tuple(plan.packs[n] for n in share(plan)), {}, plan.report)
                assert_is(step.batches, expected(case, mine)), rank


def test_pixels_are_in_the_shared_memory_and_slots_are_used_again(tmp_path: Path) -> None:
    case = make_case(tmp_path, steps=20)
    places = set()
    with loader(case, 2, prefetch_steps=1) as steps:
        start, size = steps._slots.address()
        for step in steps:
            for batch in step.batches:
                assert batch.pixels is not None
                for tensor in (batch.tokens, batch.labels, batch.row_index, batch.cu_seqlens, batch.pixels):
                    assert start <= tensor.data_ptr() < start + size
                places.add((batch.tokens.data_ptr() - start) // steps._slots.size)
    assert len(places) == steps._slots.count == 4, "two micro-batches a step, of one step ahead and one in training"


def test_planning_runs_ahead_by_so_many_steps_and_no_more(tmp_path: Path) -> None:
    case = make_case(tmp_path, steps=12)
    planned = []

    def plans() -> Iterator[StepPlan]:
        for plan in case.plans:
            planned.append(plan.step)
            yield plan

    with loader(case, 1, plans=plans(), prefetch_steps=3) as steps:
        assert planned == []
        for number in range(6):
            step = next(steps)
            assert step.plan.step == number
            assert len(planned) <= number + 1 + 3
        assert next(steps).plan.state == {"after": 6}, "of the step itself, however far planning is"


@pytest.mark.parametrize("workers", [0, 2])
def test_ranks_without_an_encoder_read_no_picture(tmp_path: Path, workers: int) -> None:
    case = make_case(tmp_path, broken=range(40))
    with loader(case, workers, decode=False) as steps:
        for step in steps:
            assert all(batch.pixels is None and not batch.broken and batch.pictures for batch in step.batches)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_picture_is_grey_and_named(tmp_path: Path, workers: int) -> None:
    case = make_case(tmp_path, broken=[4])
    found = []
    with loader(case, workers) as steps:
        for step in steps:
            for batch in step.batches:
                assert batch.pixels is not None
                found += batch.broken
                for picture in batch.broken:
                    assert (batch.pixels[picture.picture] == 128).all()
                    assert batch.pixels[picture.picture - 1].float().std() > 10, "its neighbour is a picture"
    assert found
    assert {(picture.source, picture.document) for picture in found} == {(1, 4)}
    reader = case.sources["captions"].reader
    assert all(picture.sequence in reader.document_sequences(4) for picture in found)
    assert "cannot read" in found[0].reason


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_in_the_data_comes_in_place_of_its_step(tmp_path: Path, workers: int) -> None:
    case = make_case(tmp_path, wrong_text=13)
    spans = [(plan.step, span) for plan in case.plans for pack in plan.packs for span in pack]
    at = min(step for step, span in spans if (span.source, span.document, span.start) == (0, 13, 0))
    with loader(case, workers, prefetch_steps=4) as steps:
        for number in range(at):
            assert next(steps).plan.step == number
        with pytest.raises(DataError, match=r"text, document 13: token id 5000 is outside the vocabulary of 1000"):
            next(steps)
    assert at > 0


@pytest.mark.parametrize("workers", [0, 1])
def test_what_planning_raises_comes_in_its_place(tmp_path: Path, workers: int) -> None:
    case = make_case(tmp_path)

    def plans() -> Iterator[StepPlan]:
        yield from case.plans[:3]
        raise DataError("no document fits")

    with loader(case, workers, plans=plans()) as steps:
        assert [next(steps).plan.step for _ in range(3)] == [0, 1, 2]
        with pytest.raises(DataError, match="no document fits"):
            next(steps)


def test_a_dataset_that_is_gone_is_named(tmp_path: Path) -> None:
    case = make_case(tmp_path)
    (tmp_path / "captions.idx").unlink()
    with loader(case, 2) as steps, pytest.raises(DataError, match=r"captions.idx does not exist"):
        next(steps)


def test_memory_that_is_not_there_is_asked_for_by_its_size(tmp_path: Path) -> None:
    case = make_case(tmp_path)
    with pytest.raises(UserError, match=r"needs up to \d+ MB of memory .*; lower loader.prefetch_steps"):
        loader(case, 1, prefetch_steps=10**12)


def test_close_ends_the_workers_and_leaves_what_was_given(tmp_path: Path) -> None:
    case = make_case(tmp_path)
    steps = loader(case, 2)
    step = next(steps)
    pids = steps.pids
    assert len(pids) == 2
    steps.close()
    steps.close()
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert_is(step.batches, expected(case, case.plans[0]))
    with pytest.raises(RuntimeError, match="closed"):
        next(steps)


def test_a_loader_that_was_never_used_starts_nothing(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    loader(make_case(tmp_path), 2).close()
    np.testing.assert_allclose(len(os.listdir("/proc/self/fd")), before, atol=4)  # the datasets' own maps


def test_a_worker_does_without_torch() -> None:
    code = "import sys, megatron_vlm.data.loader.worker; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
