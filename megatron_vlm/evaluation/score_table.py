"""Scores of tasks as a table, as Markdown and as TensorBoard's scalars; differences between two results as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from megatron_vlm.evaluation.statistics import Difference
from megatron_vlm.evaluation.task_scores import TaskScore


def _score_rows(scores: Sequence[TaskScore]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for score in scores:
        name = score.task if score.control == "seen" else f"{score.task}, {score.control}"
        interval = f"{score.score.low:.1%} to {score.score.high:.1%}"
        more = [f"{figure} {value:.1%}" for figure, value in score.figures.items() if figure != "accuracy"]
        more += [f"{split} {value:.1%}" for split, value in score.splits.items()]
        figures = f"{score.score.mean:.1%}", interval, f"{score.chance:.1%}"
        rows.append((name, str(len(score.values)), *figures, ", ".join(more)))
    return rows


_HEADER = ("task", "questions", "score", "95 %", "chance", "")


def score_table(scores: Sequence[TaskScore], stable: Mapping[str, float]) -> str:
    """Tasks as aligned lines: score, its interval by bootstrap over questions, chance, and what else the metric has."""
    rows = [_HEADER, *_score_rows(scores)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADER))]
    lines = [
        "  ".join(
            cell.ljust(width) if at in (0, 5) else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    lines += [f"stable score, {group}: {value:+.1%} above chance" for group, value in stable.items()]
    return "\n".join(line.rstrip() for line in lines)


def score_markdown(scores: Sequence[TaskScore]) -> str:
    """The same rows as a Markdown table."""
    rows = [_HEADER, ("---",) * len(_HEADER), *_score_rows(scores)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def difference_table(differences: Mapping[tuple[str, str], Difference]) -> str:
    """What the second of two results scores above the first, by task and control."""
    lines = [f"{'task':<28}{'difference':>12}{'95 %':>20}{'p':>9}{'better':>8}{'worse':>7}"]
    for (task, control), found in differences.items():
        name = task if control == "seen" else f"{task}, {control}"
        interval = f"{found.interval.low:+.1%} to {found.interval.high:+.1%}"
        lines.append(
            f"{name:<28}{found.interval.mean:>+12.1%}{interval:>20}{found.p_value:>9.4f}{found.better:>8}{found.worse:>7}"
        )
    return "\n".join(lines)


def write_tensorboard(folder: Path, step: int, scores: Sequence[TaskScore]) -> None:
    """Scores as scalars `tasks/scores/NAME` (`.../NAME/blind`) of a step, where and as a run writes them itself."""
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder)) as writer:
        for score in scores:
            name = f"tasks/scores/{score.task}" if score.control == "seen" else f"tasks/scores/{score.task}/{score.control}"
            writer.add_scalar(name, score.score.mean, step)
            for figure, value in score.figures.items():
                writer.add_scalar(f"{name}/{figure}", value, step)
