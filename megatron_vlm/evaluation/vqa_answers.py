"""Accuracy of free answers against ten people's: VQAv2's, and of the sets that score like it (TextVQA, VizWiz).

Source: Antol et al. 2015, "VQA: Visual Question Answering", section 3.4, and the evaluation that its authors publish, whose
normalisation of answers is followed to the letter, oddities included. It is done for every question, as on the leaderboard;
the authors' script leaves out questions on which all people agree, so that "Yes" is wrong there where people said "yes".
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
#: the published pattern begins with `(?!<=\d)`, a look-behind misspelt into a look-ahead that never forbids anything
_FULL_STOP = re.compile(r"\.(?!\d)")
#: re.UNICODE, which is passed where the most replacements are expected
_FULL_STOPS_REMOVED = 32
_NUMBERS = {"none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5"}
_NUMBERS |= {"six": "6", "seven": "7", "eight": "8", "nine": "9", "ten": "10"}
_ARTICLES = frozenset({"a", "an", "the"})


_WITH_ONE = (
    "ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's isn't "
    "it'd it'll ma'am mightn't might've mustn't must've needn't not've o'clock oughtn't shan't should've shouldn't "
    "somebody'll somebody's someone'd someone'll someone's something'd something'll that's there'd there're there's "
    "they'd they'll they're they've wasn't we've weren't what'll what're what's what've when's where'd where's where've "
    "who'd who'll who's who've why'll why're why's won't would've wouldn't y'all you'd you'll you're you've"
)
_WITH_TWO = (
    "couldn't've hadn't've he'd've it'd've mightn't've she'd've shouldn't've somebody'd've someone'd've something'd've "
    "there'd've they'd've we'd've who'd've wouldn't've y'all'll you'd've"
)


def _contractions() -> dict[str, str]:
    """Contractions without their apostrophes, or some of them, as the published table lists them."""
    table = {word.replace("'", ""): word for word in _WITH_ONE.split()}
    for word in _WITH_TWO.split():
        first, second, third = word.split("'")
        table |= {f"{first}{second}'{third}": word, f"{first}'{second}{third}": word}
    table |= dict.fromkeys(("yall'd've", "y'alld've", "y'all'dve"), "y'all'd've") | {"twas": "'twas"}
    table |= {"'ow'sat": "'ow's'at", "'ows'at": "'ow's'at", "ow's'at": "'ow's'at"}
    return table | {"somebody'd": "somebodyd"}  # as it is published


_CONTRACTIONS = _contractions()


def _without_punctuation(text: str) -> str:
    result = text
    removed_everywhere = _COMMA_IN_NUMBER.search(text) is not None
    for mark in _PUNCTUATION:
        alone = f"{mark} " in text or f" {mark}" in text
        result = result.replace(mark, "" if alone or removed_everywhere else " ")
    return _FULL_STOP.sub("", result, count=_FULL_STOPS_REMOVED)


def normalised_answer(text: str) -> str:
    """An answer as it is compared: lower case, no punctuation and articles, numbers as digits, contractions written out."""
    words = _without_punctuation(text.replace("\n", " ").replace("\t", " ").strip()).lower().split()
    words = [_NUMBERS.get(word, word) for word in words]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def vqa_accuracy(answer: str, people: Sequence[str]) -> float:
    """Share of three people who gave the answer, at most 1, averaged over all choices of all people but one.

    Args:
        answer: the model's.
        people: what people answered, usually ten; at least one.

    Raises:
        ValueError: no people.
    """
    if not people:
        raise ValueError("there is no answer to compare with")
    answer, given_by = normalised_answer(answer), [normalised_answer(given) for given in people]
    same = sum(given == answer for given in given_by)
    return sum(min(1.0, (same - (given == answer)) / 3) for given in given_by) / len(given_by)
