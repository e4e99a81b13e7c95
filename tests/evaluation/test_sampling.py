"""Draws: from where they may come, as often as they should, and the text of tokens as they come."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron_vlm.errors import ConfigError
from megatron_vlm.evaluation.generation import Spoken, cut
from megatron_vlm.evaluation.sampling import Sampling, next_tokens

LOGITS = torch.tensor([[0.1, 0.4, 0.2, 0.3]]).log()


def _draws(sampling: Sampling, count: int = 4000, logits: torch.Tensor = LOGITS) -> Counter[int]:
    rows = logits.expand(count, -1)
    return Counter(next_tokens(rows, sampling, [torch.Generator().manual_seed(n) for n in range(count)]).tolist())


def test_greedy_takes_the_likeliest_and_the_first_of_equals() -> None:
    assert next_tokens(torch.tensor([[1.0, 3, 3], [2, 1, 0]]), Sampling(), []).tolist() == [1, 0]


def test_draws_are_as_frequent_as_likely() -> None:
    found = _draws(Sampling(temperature=1.0))
    for token, share in enumerate((0.1, 0.4, 0.2, 0.3)):
        assert found[token] / 4000 == pytest.approx(share, abs=0.03)


def test_temperature_sharpens() -> None:
    found = _draws(Sampling(temperature=0.5))
    assert found[1] / 4000 == pytest.approx(0.16 / 0.30, abs=0.03)


@pytest.mark.parametrize(
    ("fields", "tokens"),
    [({"top_k": 2}, {1, 3}), ({"top_p": 0.4}, {1}), ({"top_p": 0.41}, {1, 3}), ({"top_p": 0.95}, {0, 1, 2, 3})],
)
def test_what_may_come(fields: dict, tokens: set[int]) -> None:
    assert set(_draws(Sampling(temperature=1.0, **fields))) == tokens


def test_what_must_not_come_does_not() -> None:
    assert set(_draws(Sampling(temperature=5.0), logits=torch.tensor([[0.0, float("-inf"), 0.0]]))) == {0, 2}


@pytest.mark.parametrize(
    "fields", [{"max_new_tokens": 0}, {"temperature": -1.0}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.5}]
)
def test_values_out_of_range(fields: dict) -> None:
    with pytest.raises(ConfigError, match=next(iter(fields))):
        Sampling(**fields)


def _bytes(ids: Sequence[int]) -> str:
    return bytes(ids).decode("utf-8", "replace")


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufffd"), max_size=20))
def test_all_is_said_once_and_no_half_characters(text: str) -> None:
    spoken = Spoken(_bytes)
    said = [spoken.add(token) for token in text.encode()]
    assert not any("\ufffd" in part for part in said)
    assert "".join(said) + spoken.rest() == text


@given(st.text("ab\n", max_size=12), st.lists(st.text("ab\n", min_size=1, max_size=3), max_size=2))
def test_nothing_is_said_from_a_stop_on(text: str, stop: list[str]) -> None:
    spoken = Spoken(_bytes, stop)
    said = ""
    for token in text.encode():
        said += spoken.add(token)
        assert cut(text, stop).startswith(said)
    assert said + spoken.rest() == cut(text, stop)
