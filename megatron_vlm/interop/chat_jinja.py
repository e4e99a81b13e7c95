"""A chat template of this project as the Jinja text that `transformers` renders to the same."""

from __future__ import annotations

import json
from collections.abc import Sequence

from megatron_vlm.data.records import Text
from megatron_vlm.data.sources.chat_template import ChatTemplate, RoleFormat


def _said(pieces: Sequence[Text]) -> str:
    text = "".join(piece.text for piece in pieces)
    return "{{ " + _literal(text) + " }}" if text else ""


def _literal(text: str) -> str:
    """A Jinja string: JSON's escapes are Jinja's too."""
    return json.dumps(text, ensure_ascii=False)


def _turn(role: RoleFormat, trim: bool, image_token: str) -> str:
    words = "item['text']"
    picture = "{%- if item['type'] == 'image' -%}{{ " + _literal(image_token) + " }}"
    text = "{%- elif item['type'] == 'text' -%}{{ " + words + " }}{%- endif -%}"
    items = "{%- for item in content -%}" + picture + text + "{%- endfor -%}"
    if trim:
        # both ends of the turn, which may be several items
        whole = "{%- set said -%}" + items + "{%- endset -%}{{ said | trim }}"
        return _said(role.prefix) + whole + _said(role.suffix)
    return _said(role.prefix) + items + _said(role.suffix)


def as_jinja(template: ChatTemplate, image_token: str) -> str:
    """The text of chat_template.jinja.

    Messages have a role and a content, which is a text or a list of {"type": "text", "text": ...} and {"type": "image"};
    a picture is written as `image_token`. With add_generation_prompt, what an assistant's turn begins with that is not
    learnt follows.
    """
    trim = template.trim
    roles = "".join(
        "{%- " + ("if" if number == 0 else "elif") + f" message['role'] == '{name}' -%}}" + _turn(role, trim, image_token)
        for number, (name, role) in enumerate(
            (("system", template.system), ("user", template.user), ("assistant", template.assistant))
        )
    )
    default = ""
    if template.system_text is not None:
        said = (*template.system.prefix, Text(template.system_text), *template.system.suffix, *template.between)
        default = "{%- if not messages or messages[0]['role'] != 'system' -%}" + _said(said) + "{%- endif -%}"
    content = (
        "{%- if message['content'] is string -%}{%- set content = [{'type': 'text', 'text': message['content']}] -%}"
        "{%- else -%}{%- set content = message['content'] -%}{%- endif -%}"
    )
    between = "{%- if not loop.first -%}" + _said(template.between) + "{%- endif -%}" if template.between else ""
    prompt = _said([piece for piece in template.assistant.prefix if not piece.learnt])
    ending = _said(template.end)
    finish = (
        "{%- if add_generation_prompt -%}" + _said(template.between) + prompt + "{%- else -%}" + ending + "{%- endif -%}"
    )
    return (
        _said(template.begin)
        + default
        + "{%- for message in messages -%}"
        + content
        + between
        + roles
        + "{%- endif -%}{%- endfor -%}"
        + finish
    )
