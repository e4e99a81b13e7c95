"""Tables of the mini study as Markdown, with what two seeds allow to be said of them.

  python examples/mini_study/summarise.py examples/mini_study/study.yaml > tables.md

A cell is the mean over seeds. `±` is half a 95 % interval of such a mean: seeds of one point differ by a standard deviation
that is taken to be the same at every point, estimated from all of them (a degree of freedom for each pair), and Student's t.
It holds the noise of training, not that of which questions were asked: those are the same for every run. `slope` is what a
straight line through all runs rises from an introduction at 0 to one at 100 %, with its 95 % interval.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from megatron_vlm.study.drawing import spread  # noqa: E402
from megatron_vlm.study.folder import StudyFolder  # noqa: E402
from megatron_vlm.study.results import Measures, Result, read_results, value_of  # noqa: E402
from megatron_vlm.study.segments import study_graph  # noqa: E402
from megatron_vlm.study.study_file import read_study  # noqa: E402

#: two-sided 95 % of Student's t by degrees of freedom (Fisher and Yates 1938, table III)
_T95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262, 10: 2.228}

Value = Callable[[Result], float | None]


def half_interval(groups: Iterable[Sequence[float]]) -> float | None:
    """Half the 95 % interval of the mean of one group, by what groups of like size differ in themselves; None without pairs.

    >>> round(half_interval([[1.0, 3.0], [2.0, 2.0]]), 3)  # one standard deviation over 2 degrees of freedom: 1
    3.043
    """
    groups = [list(group) for group in groups if len(group) > 1]
    free = sum(len(group) - 1 for group in groups)
    if not free:
        return None
    squares = sum((x - sum(group) / len(group)) ** 2 for group in groups for x in group)
    return _T95.get(free, 2.1) * math.sqrt(squares / free) / math.sqrt(min(len(group) for group in groups))


def trend(points: Sequence[tuple[float, float]]) -> tuple[float, float] | None:
    """Slope of the least-squares line through (introduction, value) of every run, and half its 95 % interval; None for fewer
    than three runs or one introduction point.

    >>> slope, half = trend([(0.0, 0.0), (0.5, 0.6), (1.0, 1.0)])
    >>> round(slope, 3), round(half, 3)  # residuals -1/30, 2/30, -1/30: 12.706 * sqrt(6/900 / 0.5)
    (1.0, 1.467)
    """
    count = len(points)
    middle = sum(x for x, _ in points) / count if count else 0.0
    spread = sum((x - middle) ** 2 for x, _ in points)
    if count < 3 or not spread:
        return None
    height = sum(y for _, y in points) / count
    slope = sum((x - middle) * y for x, y in points) / spread
    squares = sum((y - height - slope * (x - middle)) ** 2 for x, y in points)
    return slope, _T95.get(count - 2, 2.1) * math.sqrt(squares / (count - 2) / spread)


def _shares(results: Sequence[Result]) -> list[str]:
    return sorted({str(r.leaf.point.value("introduction")) for r in results}, key=float)


def _row(name: str, results: Sequence[Result], value: Value, digits: int, scale: float = 1.0) -> str | None:
    """None where no point has the value; a point that is not measured yet has an empty cell."""
    points = dict(spread(results, "introduction", value))
    if not points:
        return None
    at = [points.get(share) for share in _shares(results)]
    cells = ["" if v is None else f"{scale * sum(v) / len(v):.{digits}f}" for v in at]
    half = half_interval(points.values())
    found = trend([(float(share), value) for share, values in points.items() for value in values])
    last = "" if found is None else f"{scale * found[0]:+.{digits}f} ± {scale * found[1]:.{digits}f}"
    return f"| {name} | {' | '.join(cells)} | {'' if half is None else f'±{scale * half:.{digits}f}'} | {last} |"


def _table(results: Sequence[Result], rows: Iterable[str | None]) -> Iterator[str]:
    shares = _shares(results)
    yield f"| | {' | '.join(f'{float(share):.0%}' for share in shares)} | ± | slope |"
    yield f"|---|{'---|' * len(shares)}---|---|"
    yield from (row for row in rows if row is not None)
    yield ""


def _after(name: str) -> Value:
    return lambda r: value_of(r.after, name)


def _before(name: str) -> Value:
    return lambda r: value_of(r.before, name)


def _control(task: str, control: str) -> Value:
    return lambda r: None if r.after is None else r.after.controls.get(task, {}).get(control)


def tables(results: Sequence[Result]) -> Iterator[str]:
    """Markdown, a line at a time: losses before and after fine-tuning, tasks after it, controls, policies."""
    main = [r for r in results if r.leaf.point.value("lr_policy") == results[0].leaf.point.value("lr_policy")]
    known = [m for r in results for m in (r.before, r.after) if m is not None]
    tasks = list(dict.fromkeys(name for m in known for name in m.controls))
    losses = list(dict.fromkeys(name for m in known for name in m.losses))
    gaps = list(dict.fromkeys(name for m in known for name in m.gaps))
    for title, value in (("Before fine-tuning", _before), ("After fine-tuning", _after)):
        yield f"### {title}: held-out loss and blind gap, nats a token"
        rows = [_row(f"loss, {name}", main, value(f"loss {name}"), 3) for name in losses]
        yield from _table(main, rows + [_row(f"gap, {name}", main, value(f"gap {name}"), 3) for name in gaps])
    yield "### After fine-tuning: tasks, % right"
    rows = []
    for task in tasks:
        chance = next(m.chances[f"task {task}"] for m in known if f"task {task}" in m.chances)
        rows.append(_row(f"{task} (chance {chance:.0%})", main, _after(f"task {task}"), 1, 100))
        blind = _row(f"{task}, blind", main, _control(task, "blind"), 1, 100)
        rows += [blind, _row(f"{task}, another picture", main, _control(task, "shuffled"), 1, 100)] if blind else []
    yield from _table(main, rows)
    yield "### Stable scores, percentage points above chance"
    rows = [_row(f"{g}, {w}", main, v(f"stable {g}"), 1, 100) for g in ("vision", "text") for w, v in _WHEN]
    yield from _table(main, rows)
    yield from _policies(results, losses, gaps)


_WHEN: tuple[tuple[str, Callable[[str], Value]], ...] = (("before", _before), ("after", _after))


def _policies(results: Sequence[Result], losses: Sequence[str], gaps: Sequence[str]) -> Iterator[str]:
    """The same points under another learning-rate policy, difference by seed."""
    of: dict[tuple[str, str], dict[str, Result]] = {}
    for result in results:
        key = str(result.leaf.point.value("introduction")), str(result.leaf.point.value("seed"))
        of.setdefault(key, {})[str(result.leaf.point.value("lr_policy"))] = result
    stable = ["stable vision", "stable text"]
    names = [f"loss {n}" for n in losses] + [f"gap {n}" for n in gaps] + stable
    head = [f"{name}, before" for name in names] + [f"{name}, after" for name in stable]
    yield "### Learning-rate policy at the branch"
    yield f"| introduction, seed | policy | {' | '.join(head)} |"
    yield "|---|---|" + "---|" * len(head)
    for (share, seed), by in of.items():
        if len(by) < 2:
            continue
        for policy, result in by.items():
            cells = [*_cells(result.before, names), *_cells(result.after, stable)]
            yield f"| {float(share):.0%}, {seed} | {policy} | {' | '.join(cells)} |"


def _cells(measures: Measures | None, names: Sequence[str]) -> Iterator[str]:
    for name in names:
        value = value_of(measures, name)
        yield "" if value is None else f"{value:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    graph = study_graph(read_study(parser.parse_args().study))
    print("\n".join(tables(read_results(graph, StudyFolder(graph.study.folder)))))


if __name__ == "__main__":
    main()
