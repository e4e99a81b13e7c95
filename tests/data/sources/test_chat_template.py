"""Templates against transformers' own rendering of the same formats, on a tokenizer trained for the occasion."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from megatron_vlm.data.records import Picture, Text
from megatron_vlm.data.sources.chat_template import BUILT_IN, ChatTemplate, Role, Turn, joined, load_template
from megatron_vlm.errors import ConfigError

JINJA = {
    "chatml": (
        "{% for message in messages %}<|im_start|>{{ message.role }}\n"
        "{% if message.role == 'assistant' %}{% generation %}{{ message.content }}<|im_end|>{% endgeneration %}"
        "{% else %}{{ message.content }}<|im_end|>{% endif %}{{ '\n' }}{% endfor %}"
    ),
    "llama3": (
        "<|begin_of_text|>{% for message in messages %}"
        "<|start_header_id|>{{ message.role }}<|end_header_id|>\n\n"
        "{% if message.role == 'assistant' %}{% generation %}{{ message.content | trim }}<|eot_id|>{% endgeneration %}"
        "{% else %}{{ message.content | trim }}<|eot_id|>{% endif %}{% endfor %}"
    ),
    "llava_v1": (
        "{% if messages[0].role == 'system' %}{% set first = messages[0].content %}{% set rest = messages[1:] %}"
        '{% else %}{% set first = "SYSTEM" %}{% set rest = messages %}{% endif %}{{ first }} '
        "{% for message in rest %}{% if message.role == 'user' %}USER: {{ message.content }} "
        "{% else %}ASSISTANT:{% generation %} {{ message.content }}</s>{% endgeneration %}{% endif %}{% endfor %}"
    ).replace("SYSTEM", str(BUILT_IN["llava_v1"].system_text)),
    "plain": (
        "{% for message in messages %}{% if message.role == 'system' %}{{ message.content }}\n"
        "{% elif message.role == 'user' %}User: {{ message.content }}\n"
        "{% else %}Assistant:{% generation %} {{ message.content }}\n{% endgeneration %}{% endif %}{% endfor %}"
    ),
}

#: as people write: what a template puts beside it is white space, and must not run into white space of theirs
WORDS = st.text(st.sampled_from("aàb猫 .,'7\n😀<|>_ims"), min_size=1, max_size=20).map(lambda text: f"w{text}w")


@pytest.fixture(scope="module")
def backend() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = sorted({name for template in BUILT_IN.values() for name in template.special_names()})
    texts = ["User: what is it? Assistant: it is a red square", "the user and the assistant\n\nsystem"] * 4
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(vocab_size=330 + len(specials), special_tokens=specials, initial_alphabet=alphabet),  # type: ignore[no-untyped-call]
    )
    return tokenizer


def conversation(words: list[str], system: str | None) -> list[Turn]:
    turns = [Turn(Role.SYSTEM, (system,))] if system is not None else []
    roles = [Role.USER, Role.ASSISTANT] * len(words)
    return turns + [Turn(role, (text,)) for role, text in zip(roles, words[: len(words) // 2 * 2], strict=False)]


def encoded(template: ChatTemplate, turns: list[Turn], backend: Tokenizer) -> tuple[list[int], list[int]]:
    """Ids and mask of a document, each part encoded for itself, as a dataset is built."""
    plain = Tokenizer.from_str(backend.to_str())
    plain.encode_special_tokens = True  # text is data: it cannot spell a special token
    ids: list[int] = []
    mask: list[int] = []
    for part in template.render(turns):
        assert isinstance(part, Text)
        new = [backend.token_to_id(part.text)] if part.special else plain.encode(part.text, add_special_tokens=False).ids
        assert None not in new
        ids += new
        mask += [int(part.learnt)] * len(new)
    return ids, mask


@pytest.mark.parametrize("name", sorted(JINJA))
@given(words=st.lists(WORDS, min_size=2, max_size=6), system=st.none() | WORDS)
def test_ids_and_mask_are_those_of_transformers(name: str, words: list[str], system: str | None, backend: Tokenizer) -> None:
    from transformers import PreTrainedTokenizerFast

    theirs = PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=JINJA[name])
    turns = conversation(words, system)
    messages = [{"role": turn.role.value, "content": turn.content[0]} for turn in turns]
    expected = theirs.apply_chat_template(messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    ids, mask = encoded(BUILT_IN[name], turns, backend)
    assert ids == list(expected["input_ids"])
    assert mask == list(expected["assistant_masks"])
    assert 0 < sum(mask) < len(mask)


def test_llama3_takes_white_space_off_as_transformers_does(backend: Tokenizer) -> None:
    from transformers import PreTrainedTokenizerFast

    theirs = PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=JINJA["llama3"])
    turns = conversation(["\n what? \n", "  it \n"], None)
    messages = [{"role": turn.role.value, "content": turn.content[0]} for turn in turns]
    expected = theirs.apply_chat_template(messages, tokenize=True, return_dict=True)
    assert encoded(BUILT_IN["llama3"], turns, backend)[0] == list(expected["input_ids"])


def test_data_does_not_spell_the_template(backend: Tokenizer) -> None:
    ids, _ = encoded(BUILT_IN["chatml"], conversation(["<|im_end|>", "a<|im_start|>b"], None), backend)
    assert ids.count(backend.token_to_id("<|im_end|>")) == 2
    assert ids.count(backend.token_to_id("<|im_start|>")) == 2


def test_pictures_keep_their_places_and_texts_are_joined() -> None:
    picture = Picture(b"P")
    turns = [Turn(Role.USER, (picture, "\nwhat", " is it?")), Turn(Role.ASSISTANT, ("a ", "cat"))]
    assert BUILT_IN["plain"].render(turns) == (
        Text("User: ", learnt=False),
        picture,
        Text("\nwhat is it?\nAssistant:", learnt=False),
        Text(" a cat\n", learnt=True),
    )


def test_trimming_stops_at_pictures() -> None:
    picture = Picture(b"P")
    turns = [Turn(Role.USER, (" a ", picture, " b ")), Turn(Role.ASSISTANT, (" c ",))]
    texts = [part for part in BUILT_IN["llama3"].render(turns) if not (isinstance(part, Text) and part.special)]
    assert texts[1:5] == [Text("\n\na ", False), picture, Text(" b", False), Text("assistant", False)]
    assert texts[-1] == Text("c", True)


@given(
    st.lists(
        st.builds(Text, st.sampled_from(["", "a", "b"]), st.booleans(), st.booleans()) | st.just(Picture(b"P")), max_size=9
    )
)
def test_joining_loses_nothing_and_leaves_no_like_neighbours(parts: list[Text | Picture]) -> None:
    def spread(parts: Any) -> list[Any]:
        result: list[Any] = []
        for part in parts:
            if isinstance(part, Text) and not part.special:
                result += [(letter, part.learnt) for letter in part.text]
            else:
                result.append(part)
        return result

    document = joined(parts)
    assert spread(document) == spread(parts)
    for one, other in zip(document, document[1:], strict=False):
        plain = isinstance(one, Text) and isinstance(other, Text) and not one.special and not other.special
        assert not (plain and one.learnt == other.learnt)  # type: ignore[union-attr]


def test_special_names_are_what_a_tokenizer_needs() -> None:
    assert BUILT_IN["plain"].special_names() == ()
    assert BUILT_IN["llava_v1"].special_names() == ("</s>",)
    assert BUILT_IN["chatml"].special_names() == ("<|im_start|>", "<|im_end|>")
    assert BUILT_IN["llama3"].special_names() == (
        "<|begin_of_text|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eot_id|>",
    )


@pytest.mark.parametrize("name", sorted(BUILT_IN))
@pytest.mark.parametrize("suffix", [".yaml", ".json"])
def test_templates_come_back_from_files(name: str, suffix: str, tmp_path: Path) -> None:
    template = load_template(name)
    path = tmp_path / f"mine{suffix}"
    path.write_text(yaml.safe_dump(template.to_map()) if suffix == ".yaml" else json.dumps(template.to_map(), indent="\t"))
    assert load_template(str(path)) == template


OWN = """
name: own
begin: [{special: <s>}]
system: {prefix: ["[INST] "], suffix: ["\\n"], learnt: true}
user: {prefix: ["Q: "]}
assistant: {prefix: [" A:", {text: " ", learnt: true}], suffix: [{special: </s>, learnt: true}], learnt: false}
between: ["\\n"]
end: [{special: <e>}]
system_text: be brief
"""


def test_a_template_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "own.yml"
    path.write_text(OWN)
    template = load_template(str(path))
    assert template.special_names() == ("<s>", "</s>", "<e>")
    assert template.render(conversation(["q", "a"], None)) == (
        Text("<s>", False, True),
        Text("[INST] ", False),
        Text("be brief", True),
        Text("\n\nQ: q\n A:", False),
        Text(" ", True),
        Text("a", False),
        Text("</s>", True, True),
        Text("<e>", False, True),
    )
    assert Text("say more", True) in template.render(conversation(["q", "a"], "say more"))
    assert Text("be brief", True) not in template.render(conversation(["q", "a"], "say more"))


BASE = {"name": "a", "user": {}, "assistant": {}}


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        ([], "a map"),
        ({}, "'name' is missing"),
        ({"name": "a", "user": {}}, "'assistant' is missing"),
        ({**BASE, "name": 5}, "name"),
        ({**BASE, "asistant": {}}, "did you mean 'assistant'"),
        ({**BASE, "user": {"prefx": []}}, "did you mean 'prefix'"),
        ({**BASE, "user": {"prefix": "User: "}}, "a list of texts"),
        ({**BASE, "user": {"prefix": [5]}}, r"user.prefix\[0\]"),
        ({**BASE, "user": {"prefix": [{}]}}, "give `special`"),
        ({**BASE, "user": {"prefix": [{"special": "a", "text": "b"}]}}, "give `special`"),
        ({**BASE, "user": {"prefix": [{"special": ""}]}}, "no text"),
        ({**BASE, "user": {"suffix": [{"text": "a", "learnt": "yes"}]}}, "neither true nor false"),
        ({**BASE, "trim": 1}, "neither true nor false"),
        ({**BASE, "system": {}, "system_text": 5}, "neither text nor null"),
        ({**BASE, "system_text": "be brief"}, "how to write it"),
    ],
)
def test_what_is_wrong_in_a_template_is_named(raw: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        ChatTemplate.from_map(raw, "t")


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("chatmll", None, "did you mean 'chatml'"),
        ("zzz", None, "known: plain"),
        ("none.yaml", None, "cannot be read"),
        ("bad.yaml", b"a: [", "cannot be read"),
        ("bad.json", b"{", "cannot be read"),
        ("bad.json", b"\xff", "cannot be read"),
    ],
)
def test_a_template_that_is_not_there(name: str, content: bytes | None, says: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=says):
        load_template(str(tmp_path / name) if "." in name else name)
