"""A study's report: one page that needs nothing beside it, the figures as files, and the runs as a table for machines."""

from __future__ import annotations

import base64
import csv
import html
import io
import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_vlm import __version__
from megatron_vlm.config.loading import to_yaml
from megatron_vlm.data import atomic_file
from megatron_vlm.errors import DataError
from megatron_vlm.planning.text_table import human
from megatron_vlm.study.cost import Cost, segment_costs
from megatron_vlm.study.drawing import Picture
from megatron_vlm.study.figures import draw_all
from megatron_vlm.study.folder import StudyFolder
from megatron_vlm.study.results import Result, read_results, text_measures, value_of, vision_measures
from megatron_vlm.study.segments import Graph

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STYLE = """
:root { --ink: #1b1b1b; --dim: #5c5c5c; --line: #d9d9d9; --paper: #ffffff; }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 0 auto; padding: 1rem;
  max-width: 62rem; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: .5rem 0; } h2 { font-size: 1.2rem; margin: 2rem 0 .3rem; }
p, figcaption { margin: .3rem 0; } figure { margin: 1rem 0; break-inside: avoid; }
.panels { display: flex; flex-wrap: wrap; gap: .5rem; }
.panels img { flex: 0 1 100%; min-width: 0; max-width: 100%; height: auto; }
.two img { flex-basis: calc(50% - .25rem); min-width: min(20rem, 100%); }
.many img { flex-basis: calc(33.3% - .34rem); min-width: min(17rem, 100%); }
figcaption, .dim { color: var(--dim); font-size: .9rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .85rem; white-space: nowrap; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid var(--line); text-align: right; }
th:first-child, td:first-child { text-align: left; } tbody tr:hover { background: #f4f7fa; }
code { font-size: .85em; } a { color: #1f4e79; }
@media print { body { max-width: none; padding: 0; font-size: 11px; } .wide { overflow: visible; }
  table { white-space: normal; font-size: 8px; } a { color: inherit; text-decoration: none; } }
"""


def write_report(graph: Graph, folder: StudyFolder, out: Path) -> list[Path]:
    """report.html, figures/*.svg and .png, runs.csv, configs/*.yaml in `out`; the files, page first.

    Raises:
        DataError: nothing is measured yet.
    """
    results = read_results(graph, folder)
    measured = [r for r in results if r.best_known is not None]
    if not measured:
        raise DataError(f"{folder.root}: nothing is measured yet; megatron-vlm study run does it")
    costs, notes = segment_costs(graph, "h100", 8)
    pictures = draw_all(measured, folder, costs)
    (out / "figures").mkdir(parents=True, exist_ok=True)
    (out / "configs").mkdir(exist_ok=True)
    written = []
    for picture in pictures:
        for number, figure in enumerate(picture.figures):
            of_several = f"-{number + 1}" if len(picture.figures) > 1 else ""
            for suffix in (".svg", ".png"):
                path = out / "figures" / f"{picture.name}{of_several}{suffix}"
                path.write_bytes(_drawn(figure, suffix[1:]))
                written.append(path)
    for number, result in enumerate(results):
        atomic_file.write_text(out / _config_name(number), to_yaml(result.leaf.point.config))
    table = out / "runs.csv"
    atomic_file.write_text(table, _csv(results, costs))
    page = out / "report.html"
    atomic_file.write_text(page, _page(graph, folder, results, pictures, costs, notes, out))
    return [page, table, *written]


def _config_name(number: int) -> str:
    return f"configs/run-{number + 1:03d}.yaml"


def _drawn(figure: Figure, kind: str) -> bytes:
    stream = io.BytesIO()
    # no date in it: the same results give the same file
    metadata = {"Date": None} if kind == "svg" else {"Software": None}
    figure.savefig(stream, format=kind, dpi=160, metadata=metadata)
    return stream.getvalue()


# -- the table of runs --------------------------------------------------------------------------------------------------


def _measures(results: Sequence[Result]) -> list[str]:
    known = [*vision_measures(list(results)), *text_measures(list(results))]
    tasks = dict.fromkeys(
        name for r in results for m in (r.before, r.after) if m for name in m.scores if name.startswith("task ")
    )
    return list(dict.fromkeys([*known, *tasks]))


def _row(result: Result, costs: dict[str, Cost], names: Sequence[str]) -> list[str]:
    leaf = result.leaf
    last = leaf.finetuned or leaf.end
    flops = sum(costs[s.key].flops for s in (*last.ancestors, last))
    row = [value for _, value in leaf.point.values] + [str(leaf.point.introduction), str(leaf.point.config.total_steps)]
    row.append(f"{flops:.4g}")
    for measures in (result.before, result.after) if leaf.finetuned is not None else (result.before,):
        for name in names:
            value = value_of(measures, name)
            row.append("" if value is None else f"{value:.6g}")
    return row


def _head(results: Sequence[Result], names: Sequence[str]) -> list[str]:
    tuned = any(r.leaf.finetuned is not None for r in results)
    head = [axis for axis, _ in results[0].leaf.point.values] + ["images from step", "steps", "FLOPs"]
    return head + [f"{name}{' before' if tuned else ''}" for name in names] + [f"{name} after" for name in names if tuned]


def _csv(results: Sequence[Result], costs: dict[str, Cost]) -> str:
    names, stream = _measures(results), io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([*_head(results, names), "config", "grids"])
    for number, result in enumerate(results):
        grids = " ".join(result.leaf.point.grids)
        writer.writerow([*_row(result, costs, names), _config_name(number), grids])
    return stream.getvalue()


# -- the page -----------------------------------------------------------------------------------------------------------


def _page(
    graph: Graph,
    folder: StudyFolder,
    results: Sequence[Result],
    pictures: Sequence[Picture],
    costs: dict[str, Cost],
    notes: Sequence[str],
    out: Path,
) -> str:
    study = graph.study
    title = html.escape(study.title or study.name)
    return (
        f'<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{title}</title>\n'
        f"<style>{_STYLE}</style></head>\n<body>\n<h1>{title}</h1>\n"
        + "".join(_summary(graph, folder, results))
        + "".join(_figure(picture) for picture in pictures)
        + "".join(_runs(results, costs, folder, out))
        + "".join(_ground(graph, costs, notes))
        + "</body>\n</html>\n"
    )


def _summary(graph: Graph, folder: StudyFolder, results: Sequence[Result]) -> Iterable[str]:
    measured = sum(r.best_known is not None for r in results)
    seeds = {r.leaf.point.value("seed") for r in results}
    yield f"<p>{measured} of {len(results)} runs are measured, over {len(seeds)} seed(s). "
    yield f"megatron-vlm {html.escape(__version__)}, {time.strftime('%Y-%m-%d')}.</p>\n"
    failed = [s for s in graph.segments if folder.state(s) == "failed"]
    if failed:
        yield f"<p><strong>{len(failed)} segment(s) failed</strong>: {html.escape(', '.join(s.name for s in failed))}.</p>\n"
    if len(seeds) < 2:
        yield "<p><strong>One seed alone</strong>: differences between points may be noise, and nothing here says how much."
        yield "</p>\n"


def _figure(picture: Picture) -> str:
    images = []
    for number, figure in enumerate(picture.figures):
        data = base64.b64encode(_drawn(figure, "svg")).decode()
        said = picture.alt if number == 0 else f"{picture.title}, {number + 1} of {len(picture.figures)}"  # in words, once
        alt = html.escape(said, quote=True)
        images.append(f'<img alt="{alt}" src="data:image/svg+xml;base64,{data}">')
    beside = {1: "one", 2: "two"}.get(len(images), "many")  # on a phone all of them stand below each other
    return (
        f'<h2>{html.escape(picture.title)}</h2>\n<figure><div class="panels {beside}">{"".join(images)}</div>'
        f"<figcaption>{html.escape(picture.caption)}</figcaption></figure>\n"
    )


def _runs(results: Sequence[Result], costs: dict[str, Cost], folder: StudyFolder, out: Path) -> Iterable[str]:
    names = _measures(results)
    yield '<h2>Every run</h2>\n<div class="wide"><table><thead><tr><th>run</th>'
    yield "".join(f"<th>{html.escape(name)}</th>" for name in _head(results, names)) + "</tr></thead>\n<tbody>\n"
    for number, result in enumerate(results):
        row = _row(result, costs, names)
        links = f'<a href="{_config_name(number)}">config</a>'
        if out.resolve().is_relative_to(folder.root.resolve()):  # a report that goes elsewhere leaves the runs behind
            segment = os.path.relpath(folder.of(result.leaf.end), out)
            links += f' <a href="{html.escape(segment, quote=True)}">folder</a>'
        yield f"<tr><td>{number + 1} {links}</td>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>\n"
    yield "</tbody></table></div>\n"


def _ground(graph: Graph, costs: dict[str, Cost], notes: Sequence[str]) -> Iterable[str]:
    total = sum((costs[s.key] for s in graph.segments), Cost())
    yield "<h2>What stands behind it</h2>\n"
    yield (
        f"<p>{len(graph.segments)} segments, {human(total.tokens)} positions, {human(total.flops)} FLOPs by the planner; "
        f"text trunks are trained once and branches begin with their checkpoints, optimiser state and place in the data "
        f"included. A stable score is the mean over tasks of accuracy less chance; naming is shown less its chance of 25 %; "
        f"a blind gap is how much a caption's loss rises under another picture.</p>\n"
    )
    for note in notes:
        yield f'<p class="dim">{html.escape(note)}</p>\n'
