"""A template as Jinja writes a conversation as the template itself does."""

from __future__ import annotations

from typing import Any

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from megatron_vlm.data.records import Picture, Text
from megatron_vlm.data.sources.chat_template import BUILT_IN, Role, Turn
from megatron_vlm.interop.chat_jinja import as_jinja

SYSTEM, USER, ASSISTANT = Role.SYSTEM, Role.USER, Role.ASSISTANT
CONVERSATIONS: tuple[tuple[Turn, ...], ...] = (
    (Turn(USER, ('Hello "you" {{ x }}',)), Turn(ASSISTANT, (" Hi.\n",))),
    (Turn(SYSTEM, ("Be kind.",)), Turn(USER, (Picture(b"p"), "What\nis it? ")), Turn(ASSISTANT, ("A kite.",))),
    (Turn(USER, ("a",)), Turn(ASSISTANT, ("b",)), Turn(USER, ("c", Picture(b"p"))), Turn(ASSISTANT, ("d",))),
)


def _rendered(name: str, turns: tuple[Turn, ...], **options: Any) -> str:
    # the environment in which transformers renders
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    messages = [
        {
            "role": str(turn.role),
            "content": [
                {"type": "text", "text": item} if isinstance(item, str) else {"type": "image"} for item in turn.content
            ],
        }
        for turn in turns
    ]
    return environment.from_string(as_jinja(BUILT_IN[name], "<image>")).render(messages=messages, **options)


@pytest.mark.parametrize("turns", CONVERSATIONS)
@pytest.mark.parametrize("name", BUILT_IN)
def test_it_writes_what_the_template_writes(name: str, turns: tuple[Turn, ...]) -> None:
    document = BUILT_IN[name].render(list(turns))
    assert _rendered(name, turns) == "".join(p.text if isinstance(p, Text) else "<image>" for p in document)


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_prompt_ends_where_the_assistant_begins_to_be_learnt(name: str) -> None:
    turns = CONVERSATIONS[0]
    learnt = next(p for p in BUILT_IN[name].render(list(turns)) if isinstance(p, Text) and p.learnt)
    whole = _rendered(name, turns)
    prompt = _rendered(name, turns[:1], add_generation_prompt=True)
    assert whole.startswith(prompt)
    assert whole[len(prompt) :].startswith(learnt.text)
