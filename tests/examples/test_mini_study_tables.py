"""Intervals and tables of the mini study's results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from megatron_vlm.study.folder import StudyFolder
from megatron_vlm.study.results import read_results
from megatron_vlm.study.segments import study_graph
from megatron_vlm.study.study_file import read_study
from tests.scripts import load_script

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def script() -> Any:
    return load_script(ROOT / "examples" / "mini_study" / "summarise.py")


def test_an_interval_is_what_pairs_differ_in_themselves(script: Any) -> None:
    # one standard deviation, 1, over two degrees of freedom: 4.303 / sqrt(2)
    assert script.half_interval([[1.0, 3.0], [2.0, 2.0]]) == pytest.approx(3.0427, abs=1e-4)
    # what points differ in has no part in it
    assert script.half_interval([[1.0, 3.0], [102.0, 102.0]]) == pytest.approx(3.0427, abs=1e-4)
    assert script.half_interval([[1.0], [5.0]]) is None


def test_a_trend_and_its_interval(script: Any) -> None:
    slope, half = script.trend([(0.0, 0.0), (0.5, 0.6), (1.0, 1.0)])
    assert slope == pytest.approx(1.0)
    # residuals -1/30, 2/30, -1/30; one degree of freedom; 0.5 is the sum of squares along x
    assert half == pytest.approx(12.706 * (6 / 900 / 0.5) ** 0.5, abs=1e-6)
    assert script.trend([(0.0, 1.0), (0.0, 2.0), (0.0, 3.0)]) is None


def test_points_that_are_not_measured_are_empty(script: Any, tmp_path: Path) -> None:
    graph = study_graph(read_study(ROOT / "examples" / "studies" / "demo.yaml"))
    results = read_results(graph, StudyFolder(tmp_path))
    chosen = results[0].leaf.point.value("introduction")
    row = script._row("a measure", results, lambda r: 0.5 if r.leaf.point.value("introduction") == chosen else None, 1, 100)
    shares = script._shares(results)
    assert row.count("50.0") == 1
    assert row.count("|") == len(shares) + 4
    assert row.split("|")[2 + shares.index(chosen)].strip() == "50.0"
