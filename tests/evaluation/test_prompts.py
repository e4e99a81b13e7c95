"""Prompts: the same examples each time, never the question itself, and the answer's ids marked."""

from __future__ import annotations

import pytest

from megatron_vlm.evaluation.boxes import Box
from megatron_vlm.evaluation.prompts import Choice, Shots, choices_of, preface, prompt_of, segment_of, split_ids
from megatron_vlm.evaluation.questions import Question
from megatron_vlm.evaluation.task import Task
from megatron_vlm.ops.assemble import MODALITY_CAPTION, MODALITY_TEXT


class _Pairs:
    """A tokenizer of pairs of letters, so that borders matter."""

    eod_id, image_token_id = 0, 1

    def encode(self, text: str) -> list[int]:
        return [hash_of(text[at : at + 2]) for at in range(0, len(text), 2)]


def hash_of(pair: str) -> int:
    return 2 + sum(ord(letter) * 256**place for place, letter in enumerate(pair))


QUESTIONS = [Question(str(n), (f"q{n}",), (f"a{n}", f"b{n}"), n % 2) for n in range(20)]


def test_examples_are_others_and_always_the_same() -> None:
    task = Task("t", "multiple_choice", "x", few_shot=3)
    shots = Shots(task, QUESTIONS)
    for question in QUESTIONS:
        found = shots.of(question)
        assert len({shot.key for shot in found}) == 3
        assert question not in found
        assert found == Shots(task, QUESTIONS[::-1]).of(question)
    assert len({tuple(shot.key for shot in shots.of(question)) for question in QUESTIONS}) > 10
    assert len(Shots(task, QUESTIONS[:2]).of(QUESTIONS[0])) == 1
    assert Shots(Task("t", "multiple_choice", "x"), QUESTIONS).of(QUESTIONS[0]) == []


def test_the_whole_prompt() -> None:
    task = Task("t", "multiple_choice", "x", preamble="Choose.\n", delimiter=" -> ", example_delimiter=";\n", few_shot=2)
    before = preface(task, QUESTIONS[:2])
    assert before == "Choose.\nq0 -> a0;\nq1 -> b1;\n"
    assert choices_of(task, QUESTIONS[5], before) == [
        Choice(before + "q5 ->", " a5"),
        Choice(before + "q5 ->", " b5"),
    ]


def test_a_schema_varies_what_comes_before() -> None:
    task = Task("t", "schema", "x")
    question = Question("0", ("the cup", "the bag"), ("was big",), 1)
    assert choices_of(task, question, "") == [Choice("the cup", " was big"), Choice("the bag", " was big")]
    assert preface(task, [question]) == "the bag was big\n"


@pytest.mark.parametrize(("scale", "answer"), [(1.0, "[0.12, 0.20, 0.50, 0.75]"), (1000.0, "[125, 200, 500, 750]")])
def test_an_example_of_a_box_says_where_it_is(scale: float, answer: str) -> None:
    task = Task("t", "grounding", "x", box_scale=scale)
    assert preface(task, [Question("0", ("the cup",), box=Box(0.125, 0.2, 0.5, 0.75))]) == f"the cup {answer}\n"


def test_a_free_answer_follows_without_white_space() -> None:
    task = Task("t", "open", "x", delimiter="\nA: ")
    assert prompt_of(task, Question("0", ("q",), answers=("a",)), "") == "q\nA:"


def test_answers_are_cut_from_the_whole_where_tokens_end_there() -> None:
    tokenizer = _Pairs()
    assert split_ids(tokenizer, Choice("abcd", " e")) == (tokenizer.encode("abcd"), tokenizer.encode(" e"))
    # "abc" and " e" together are ab, "c ", e: a token reaches over the border, so they are encoded apart
    assert split_ids(tokenizer, Choice("abc", " e")) == (tokenizer.encode("abc"), tokenizer.encode(" e"))
    assert split_ids(tokenizer, Choice("", "ab")) == ([], tokenizer.encode("ab"))


def test_segments() -> None:
    tokenizer = _Pairs()
    text = segment_of(tokenizer, [5, 6, 7], [8, 9], 0, 10)
    assert (text.ids.tolist(), text.loss_from, text.modality) == ([5, 6, 7, 8, 9], 2, MODALITY_TEXT)
    shown = segment_of(tokenizer, [5], [8, 9], 3, 10)
    assert (shown.ids.tolist(), shown.loss_from, shown.modality) == ([1, 1, 1, 5, 8, 9], 3, MODALITY_CAPTION)
    alone = segment_of(tokenizer, [], [8], 0, 10)
    assert (alone.ids.tolist(), alone.loss_from) == ([0, 8], 0)


@pytest.mark.parametrize(("rows", "capacity", "kept"), [(0, 3, [6, 7]), (0, 2, [7]), (2, 4, [7]), (2, 3, [])])
def test_what_comes_before_loses_its_beginning(rows: int, capacity: int, kept: list[int]) -> None:
    segment = segment_of(_Pairs(), [5, 6, 7], [8, 9], rows, capacity)
    assert segment.ids.tolist() == [1] * rows + kept + [8, 9]
    assert len(segment.ids) - 1 <= capacity


def test_what_cannot_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="an answer of 2 tokens and 4 of a picture do not fit 4 positions"):
        segment_of(_Pairs(), [5], [8, 9], 4, 4)
