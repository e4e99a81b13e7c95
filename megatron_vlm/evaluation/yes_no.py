"""Yes or no: POPE's figures (Li et al. 2023, "Evaluating Object Hallucination in Large Vision-Language Models")."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class YesNo:
    """Shares of the questions; precision, recall and f1 are of "yes". 0 where a share has nothing below it."""

    accuracy: float
    precision: float
    recall: float
    f1: float
    yes_share: float


def read_label(label: object) -> str | None:
    """What a set calls right: yes or no in any case, or JSON's true or false; None for anything else."""
    if isinstance(label, bool):
        return "yes" if label else "no"
    word = label.strip().lower() if isinstance(label, str) else ""
    return word if word in ("yes", "no") else None


def read_yes_no(text: str) -> bool:
    """POPE's reading: of the first sentence, without commas; "no" or "not" among its words is no, all else yes."""
    words = text.partition(".")[0].replace(",", "").split(" ")
    return not any(word in ("No", "not", "no") for word in words)


def yes_no_figures(answers: Sequence[bool], truth: Sequence[bool]) -> YesNo:
    """Raises ValueError where there are none, or not as many of both."""
    if not answers or len(answers) != len(truth):
        raise ValueError(f"{len(answers)} answers to {len(truth)} questions")
    pairs = list(zip(answers, truth, strict=True))
    hits = sum(said and true for said, true in pairs)
    said_yes, true_yes = sum(answers), sum(truth)
    precision = hits / said_yes if said_yes else 0.0
    recall = hits / true_yes if true_yes else 0.0
    return YesNo(
        accuracy=sum(said == true for said, true in pairs) / len(pairs),
        precision=precision,
        recall=recall,
        f1=2 * precision * recall / (precision + recall) if hits else 0.0,
        yes_share=said_yes / len(pairs),
    )
