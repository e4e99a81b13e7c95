"""VQA's accuracy and normalisation, on what its paper and its published evaluation say of them."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_vlm.evaluation.vqa_answers import normalised_answer, vqa_accuracy


@pytest.mark.parametrize(("agree", "expected"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_ten_choose_nine(agree: int, expected: float) -> None:
    """visualqa.org: averaged over all sets of nine, an answer of three people gets 0.9, one of four gets 1."""
    people = ["red"] * agree + [f"other {n}" for n in range(10 - agree)]
    assert vqa_accuracy("Red", people) == pytest.approx(expected)


@given(st.lists(st.sampled_from(["cat", "dog", "two cats"]), min_size=2, max_size=10), st.sampled_from(["cat", "dog", "x"]))
def test_it_is_the_mean_over_all_people_but_one(people: list[str], answer: str) -> None:
    subsets = itertools.combinations(people, len(people) - 1)
    by_subset = [min(1.0, subset.count(answer) / 3) for subset in subsets]
    assert vqa_accuracy(answer, people) == pytest.approx(sum(by_subset) / len(by_subset))


@pytest.mark.parametrize(
    ("text", "normalised"),
    [
        ("The Cat.", "cat"),
        ("two", "2"),
        ("None", "0"),
        ("a dog and an owl", "dog and owl"),
        ("dont know", "don't know"),
        ("couldntve", "couldntve"),
        ("couldnt've", "couldn't've"),
        ("yall'll", "y'all'll"),
        ("somebody'd", "somebodyd"),
        ("let's", "let's"),
        ("3.5", "3.5"),  # a stop before a digit stays
        ("no. 5", "no 5"),
        ("1,000", "1000"),  # with a comma inside a number every mark goes
        ("10,000 - blue/green", "10000 bluegreen"),
        ("blue/green", "blue green"),  # a mark between letters leaves a space
        ("blue/ green", "blue green"),  # one beside a space leaves nothing
        ("left-hand", "left hand"),
        ("what?", "what"),
        ("yes\n", "yes"),
    ],
)
def test_normalisation(text: str, normalised: str) -> None:
    assert normalised_answer(text) == normalised


def test_nobody_answered() -> None:
    with pytest.raises(ValueError, match="no answer to compare"):
        vqa_accuracy("yes", [])
