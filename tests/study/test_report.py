"""The report of made-up results: self-contained, complete, and with the numbers that came out."""

from __future__ import annotations

import csv
import json
from html.parser import HTMLParser
from pathlib import Path

import pytest

from megatron_vlm.errors import DataError
from megatron_vlm.evaluation.statistics import Interval
from megatron_vlm.evaluation.task_scores import TaskScore, as_map
from megatron_vlm.study.drawing import lines_of
from megatron_vlm.study.folder import StudyFolder
from megatron_vlm.study.report import write_report
from megatron_vlm.study.results import measures_of, read_results, text_measures, vision_measures
from megatron_vlm.study.segments import Graph
from tests.study.cases import STUDY, graph

#: as `megatron-vlm evaluate --output` writes it
RESULTS = {
    "step": 30,
    "held_out": {
        "prose": {"loss": 3.5, "blind_gap": None},
        "pictures": {"loss": 2.5, "blind_loss": 2.75, "blind_gap": 0.25, "gap_error": 0.01},
    },
    "naming": {"style": {"accuracy": 0.625, "questions": 8}},
    # as `evaluate --output` writes them
    "tasks": [
        as_map(TaskScore("vqa", "vision", "vqa", control, Interval(mean, 0.3, 0.6, 0.95), 0.25))
        for control, mean in (("seen", 0.5), ("blind", 0.375))
    ],
    "stable_score": {"text": 0.125, "vision": 0.25},
}


class Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.links: list[str] = []
        self.open: list[str] = []
        self.titles: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.sources += [str(given[name]) for name in ("src", "srcset") if given.get(name)]
        self.links += [str(given["href"])] if given.get("href") else []
        if tag == "img":
            assert given.get("alt"), "a figure says what it shows"
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "h2":
            self.titles.append(data)


def _measured(found: Graph, folder: StudyFolder) -> None:
    for number, leaf in enumerate(found.leaves):
        for segment in (leaf.end, leaf.before):
            assert segment is not None
            folder.of(segment).mkdir(parents=True, exist_ok=True)
            folder.finish(segment, 1.0)
        assert leaf.before is not None
        told = json.loads(json.dumps(RESULTS))
        told["stable_score"]["vision"] = 0.25 + 0.01 * number
        folder.results(leaf.before).write_text(json.dumps(told))
        folder.run(leaf.end).mkdir(parents=True)
        first = leaf.end.first_step
        lines: list[dict[str, object]] = [
            {"kind": "eval", "step": first, "losses": {"prose": 3.0, "pictures": 5.0}},
            {"kind": "train", "step": first, "losses": {"text": 3.0, "caption": 4.0}},
            {"kind": "train", "step": first + 1, "losses": {"text": 3.1, "caption": 3.0}},
            {"kind": "eval", "step": first + 2, "losses": {"prose": 3.2, "pictures": 4.0}},
        ]
        folder.metrics(leaf.end).write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"cut')


def test_measures_of_a_results_file() -> None:
    measures = measures_of(RESULTS)
    assert measures.scores == {"stable text": 0.125, "stable vision": 0.25, "naming style": 0.375, "task vqa": 0.5}
    assert measures.losses == {"prose": 3.5, "pictures": 2.5}
    assert measures.gaps == {"pictures": 0.25}
    assert measures.controls == {"vqa": {"seen": 0.5, "blind": 0.375}}
    assert measures.intervals["task vqa"] == (0.3, 0.6)
    assert measures.intervals["gap pictures"] == pytest.approx((0.2304, 0.2696))  # 1.96 standard errors
    assert measures.chances == {"task vqa": 0.25}


def test_the_page_and_the_table(tmp_path: Path) -> None:
    axes = {**STUDY["axes"], "visual_share": [0.2, 0.4]}
    grids = {"when": {"introduction": "all", "seed": "all"}, "share": {"visual_share": "all"}}
    found, folder = graph(tmp_path, axes=axes, grids=grids), StudyFolder(tmp_path / "out")
    with pytest.raises(DataError, match="nothing is measured yet"):
        write_report(found, folder, tmp_path / "report")
    _measured(found, folder)
    results = read_results(found, folder)
    assert vision_measures(results) == ["stable vision", "naming style", "gap pictures"]
    assert text_measures(results) == ["stable text", "loss prose"]
    files = write_report(found, folder, tmp_path / "report")
    assert {path.name for path in files} >= {
        "report.html",
        "runs.csv",
        "when-1.svg",
        "when-2.png",
        "share-1.svg",
        "blind.svg",
        "each-2.svg",
    }

    page = Page()
    text = (tmp_path / "report" / "report.html").read_text()
    page.feed(text)
    assert page.open == []
    assert all(source.startswith("data:image/svg+xml;base64,") for source in page.sources), "needs nothing beside it"
    assert page.titles == [
        "When images enter",
        "Share of visual tokens",
        "Each task, and what a picture does to its caption",
        "Learning curves by modality",
        "Is text forgotten?",
        "Does it look at the picture?",
        "Cost against quality",
        "Every run",
        "What stands behind it",
    ]
    assert all((tmp_path / "report" / link).exists() for link in page.links)
    assert "width=device-width" in text
    assert "@media print" in text

    rows = list(csv.DictReader((tmp_path / "report" / "runs.csv").open()))
    assert len(rows) == len(found.leaves) == 9
    for number, (row, leaf) in enumerate(zip(rows, found.leaves, strict=True)):
        assert row["introduction"] == leaf.point.value("introduction")
        assert float(row["stable vision"]) == pytest.approx(0.25 + 0.01 * number)
        assert float(row["gap pictures"]) == 0.25
        assert (tmp_path / "report" / row["config"]).is_file()
    # the same results give the same figures
    before = (tmp_path / "report" / "figures" / "when-1.png").read_bytes()
    write_report(found, folder, tmp_path / "report")
    assert (tmp_path / "report" / "figures" / "when-1.png").read_bytes() == before


def test_one_seed_is_told_of(tmp_path: Path) -> None:
    found, folder = graph(tmp_path, grids={"when": {"introduction": "all"}}), StudyFolder(tmp_path / "out")
    _measured(found, folder)
    write_report(found, folder, tmp_path / "report")
    assert "One seed alone" in (tmp_path / "report" / "report.html").read_text()


def test_a_point_under_another_policy_is_shown_beside_the_line(tmp_path: Path) -> None:
    axes = {**STUDY["axes"], "lr_policy": {"cooldown": {}, "restart": {"images.lr_policy": "restart"}}}
    grids = {"when": {"introduction": "all", "seed": "all"}, "control": {"introduction": [0.2], "lr_policy": "all"}}
    found, folder = graph(tmp_path, axes=axes, grids=grids), StudyFolder(tmp_path / "out")
    _measured(found, folder)
    results = read_results(found, folder)
    lines = lines_of(results, "introduction")
    assert [len({r.leaf.point.value("introduction") for r in members}) for members in lines.values()] == [4, 1]
