"""POPE's reading of answers, and its figures."""

from __future__ import annotations

import pytest

from megatron_vlm.evaluation.yes_no import YesNo, read_label, read_yes_no, yes_no_figures


@pytest.mark.parametrize(
    ("text", "yes"),
    [
        ("Yes, there is a chair.", True),
        ("No, there is no chair.", False),
        ("There is not a chair", False),
        ("no", False),
        ("Nothing like it.", True),  # only the words no and not count
        ("Yes. It is not red.", True),  # only the first sentence counts
        ("", True),
    ],
)
def test_reading(text: str, yes: bool) -> None:
    assert read_yes_no(text) is yes


@pytest.mark.parametrize(
    ("label", "read"),
    [("yes", "yes"), (" No\n", "no"), ("YES", "yes"), (True, "yes"), (False, "no"), ("", None), ("true", None), (1, None)],
)
def test_labels(label: object, read: str | None) -> None:
    assert read_label(label) == read


def test_figures() -> None:
    """Of 6 questions: 2 hits, 1 false alarm, 1 miss, 2 right rejections."""
    answers = [True, True, True, False, False, False]
    truth = [True, True, False, True, False, False]
    found = yes_no_figures(answers, truth)
    assert found == YesNo(accuracy=4 / 6, precision=2 / 3, recall=2 / 3, f1=pytest.approx(2 / 3), yes_share=0.5)


@pytest.mark.parametrize(
    ("precision", "recall", "accuracy", "f1", "yes_share"),
    [(52.07, 99.60, 53.97, 68.39, 95.63), (50.46, 99.40, 50.90, 66.94, 98.57), (50.19, 99.13, 50.37, 66.64, 98.77)],
)
def test_published_figures_follow_from_each_other(
    precision: float, recall: float, accuracy: float, f1: float, yes_share: float
) -> None:
    """Rows of Li et al. 2023, table 3: mPLUG-Owl on COCO's random and popular questions, LLaVA on the random ones; 1,500
    questions of each label."""
    hits = round(recall / 100 * 1500)
    alarms = round(hits / (precision / 100) - hits)
    answers = [True] * hits + [False] * (1500 - hits) + [True] * alarms + [False] * (1500 - alarms)
    found = yes_no_figures(answers, [True] * 1500 + [False] * 1500)
    assert 100 * found.accuracy == pytest.approx(accuracy, abs=0.06)
    assert 100 * found.f1 == pytest.approx(f1, abs=0.02)
    assert 100 * found.yes_share == pytest.approx(yes_share, abs=0.1)


def test_nothing_said_yes() -> None:
    assert yes_no_figures([False, False], [True, False]) == YesNo(0.5, 0.0, 0.0, 0.0, 0.0)


def test_answers_that_do_not_match() -> None:
    with pytest.raises(ValueError, match="1 answers to 2 questions"):
        yes_no_figures([True], [True, False])
