"""The pipeline's simulation: published idle times, no deadlock, the same order as megatron-core's, long steps continued."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_vlm.planning import pipeline_simulator
from megatron_vlm.planning.pipeline_simulator import Times, bubble, events, least_span, span
from megatron_vlm.planning.schedule_order import order, peak_in_flight


def even(stages: int, chunks: int, transfer: float = 0.0) -> Times:
    """A micro-batch is 3 seconds of every stage."""
    return Times([[1 / chunks] * chunks] * stages, [[2 / chunks] * chunks] * stages, transfer)


@pytest.mark.parametrize("stages", [2, 4, 8])
@pytest.mark.parametrize("chunks", [1, 2, 4])
@pytest.mark.parametrize("rounds", [1, 3, 40])
def test_idle_time_of_even_stages(stages: int, chunks: int, rounds: int) -> None:
    """(p - 1) / (v m) of the work (Narayanan et al. 2021, arXiv 2104.04473, section 2.2)."""
    count = rounds * stages
    work = 3.0 * count
    assert span(even(stages, chunks), count) == pytest.approx(work * (1 + (stages - 1) / (chunks * count)))
    assert bubble(even(stages, chunks), count) == pytest.approx(1 - 1 / (1 + (stages - 1) / (chunks * count)))


@pytest.mark.parametrize(("stages", "chunks", "count"), [(2, 1, 3), (4, 1, 9), (2, 2, 4), (4, 3, 8), (4, 2, 4)])
def test_order_is_that_of_megatron_core(stages: int, chunks: int, count: int) -> None:
    """Of its interleaved schedule, chunks and micro-batches of each rank's virtual passes and the length of the warm-up."""
    schedules = pytest.importorskip("megatron.core.pipeline_parallel.schedules")
    table = schedules.get_schedule_table(count, chunks, stages)
    for rank in range(stages):
        passes = order(rank, stages, chunks, count)
        forward = [(step.micro_batch, step.chunk) for step in passes if step.forward]
        backward = [(step.micro_batch, step.chunk) for step in passes if not step.forward]
        assert forward == [tuple(row) for row in table]
        assert backward == [(micro_batch, chunks - 1 - chunk) for micro_batch, chunk in table]
        ahead = next(n for n, step in enumerate(passes) if not step.forward)
        expected = stages - rank - 1 if chunks == 1 else 2 * (stages - rank - 1) + (chunks - 1) * stages
        steady = expected < count * chunks
        assert ahead == min(expected, count * chunks) + steady


@given(
    st.integers(1, 5).flatmap(
        lambda stages: st.tuples(
            st.just(stages),
            st.integers(1, 3),
            st.integers(1, 4),
            st.lists(st.floats(0.0, 3.0), min_size=2 * 3 * stages, max_size=2 * 3 * stages),
            st.floats(0.0, 1.0),
        )
    )
)
def test_any_times_end_and_every_pass_is_made_once(case: tuple[int, int, int, list[float], float]) -> None:
    stages, chunks, rounds, values, transfer = case
    chunks = 1 if stages == 1 else chunks
    forward = [values[3 * s : 3 * s + chunks] for s in range(stages)]
    backward = [values[3 * (stages + s) : 3 * (stages + s) + chunks] for s in range(stages)]
    times, count = Times(forward, backward, transfer), rounds * stages
    found = events(times, count)
    assert len(found) == len({(event.stage, event.step) for event in found}) == 2 * stages * chunks * count
    ends = {(event.stage, event.step): event for event in found}
    for event in found:  # a backward pass comes after the forward one of its micro-batch
        if not event.step.forward:
            assert event.begin >= ends[event.stage, event.step._replace(forward=True)].end - 1e-9
    assert least_span(times, count) <= max(event.end for event in found) + 1e-9


@pytest.mark.parametrize(("stages", "chunks"), [(4, 1), (3, 2), (8, 1), (4, 4)])
def test_a_long_step_continues_as_if_it_were_simulated(stages: int, chunks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stages unlike one another, as the encoder and the output layer make them."""
    forward = [[1.0 / chunks] * chunks for _ in range(stages)]
    backward = [[2.0 / chunks] * chunks for _ in range(stages)]
    forward[0][0] += 0.37
    forward[-1][-1] += 0.21
    backward[-1][-1] += 0.4
    times = Times(forward, backward, 0.03)
    count = 30 * stages
    whole = max(event.end for event in events(times, count))
    monkeypatch.setattr(pipeline_simulator, "_MOST_PASSES", 0)
    assert span(times, count) == pytest.approx(whole, rel=1e-9)


def test_what_is_in_flight() -> None:
    """Section 2.2.1 of the same paper: at most p micro-batches with 1F1B; Korthikanti et al. 2022, section 4.2.3: the first
    stage of an interleaved schedule holds 1 + (p - 1) / (p m) times what 1F1B would."""
    assert [peak_in_flight(stage, 4, 1, 32, [1.0]) for stage in range(4)] == [4, 3, 2, 1]
    assert peak_in_flight(0, 4, 1, 2, [1.0]) == 2
    for stages, chunks in ((4, 2), (8, 3)):
        held = peak_in_flight(0, stages, chunks, 8 * stages, [1.0 / chunks] * chunks)
        assert held == pytest.approx(stages * (1 + (stages - 1) / (stages * chunks)))


def test_micro_batches_that_an_interleaved_schedule_cannot_deal() -> None:
    with pytest.raises(ValueError, match="5 micro-batches are not a multiple of the pipeline's 4 stages"):
        order(0, 4, 2, 5)
