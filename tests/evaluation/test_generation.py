"""What is printed while an answer comes; generation itself is in tests/distributed/test_generation.py."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import example, given
from hypothesis import strategies as st

from megatron_vlm.evaluation.generation import Spoken, cut

#: of a few letters, so that stop texts begin and end in them often
_letters = st.text("\nUs:é", min_size=1, max_size=6)


def _spoken(tokens: Sequence[bytes], stop: Sequence[str]) -> tuple[list[str], str]:
    """What is printed token by token, and the whole answer."""

    def decode(ids: Sequence[int]) -> str:
        return b"".join(tokens[number] for number in ids).decode(errors="replace")

    spoken = Spoken(decode, stop)
    said = [spoken.add(number) for number in range(len(tokens))]
    return [*said, spoken.rest()], decode(range(len(tokens)))


def test_a_stop_text_longer_than_the_answer_is_held_back() -> None:
    said, _ = _spoken([b"\nUs", b"er:"], ["\nUser:"])
    assert said == ["", "", ""]


@given(
    st.lists(_letters.map(str.encode), max_size=12) | _letters.map(lambda text: [bytes([b]) for b in text.encode()]),
    st.lists(_letters, max_size=3),
)
@example([b"\nUs", b"er:"], ["\nUser:"])
def test_what_is_printed_in_pieces_is_the_answer_cut(tokens: list[bytes], stop: list[str]) -> None:
    said, whole = _spoken(tokens, stop)
    assert "".join(said) == cut(whole, stop)
