"""How a conversation is written as one document, and which of its words a model is trained to say."""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeAlias

from megatron_vlm.data.records import Document, Part, Picture, Text
from megatron_vlm.errors import ConfigError


class Role(StrEnum):
    """Who speaks."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"


@dataclass(frozen=True, slots=True)
class Turn:
    """What one of them says: texts and pictures in reading order."""

    role: Role
    content: tuple[str | Picture, ...]


Pieces: TypeAlias = tuple[Text, ...]


@dataclass(frozen=True, slots=True)
class RoleFormat:
    """What stands around a turn.

    Attributes:
        prefix, suffix: plain text and special tokens. A piece says for itself whether it is learnt: an assistant's end token
            is, so that the model ends its turns; its name before a turn is not.
        learnt: whether the turn's own words are.
    """

    prefix: Pieces = ()
    suffix: Pieces = ()
    learnt: bool = False


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """A format of conversations.

    Attributes:
        name: for metadata and messages.
        system, user, assistant: what stands around a turn of each.
        begin, end: before the first and after the last turn.
        between: from one turn to the next.
        system_text: what the system says where a conversation has no system turn; None for no such turn.
        trim: white space at both ends of each turn's words is taken away.
    """

    name: str
    system: RoleFormat
    user: RoleFormat
    assistant: RoleFormat
    begin: Pieces = ()
    end: Pieces = ()
    between: Pieces = ()
    system_text: str | None = None
    trim: bool = False

    def special_names(self) -> tuple[str, ...]:
        """The special tokens that a tokenizer must have, each once, in order of their appearance here."""
        roles = [piece for role in (self.system, self.user, self.assistant) for piece in (*role.prefix, *role.suffix)]
        pieces = (*self.begin, *roles, *self.between, *self.end)
        return tuple(dict.fromkeys(piece.text for piece in pieces if piece.special))

    def render(self, turns: Sequence[Turn]) -> Document:
        """The document of a conversation. Neighbouring texts are one part where both or neither are learnt, so that they are
        tokenised together; special tokens and pictures are parts of their own. Any order of turns is written as it is."""
        turns = list(turns)
        if self.system_text is not None and (not turns or turns[0].role is not Role.SYSTEM):
            turns.insert(0, Turn(Role.SYSTEM, (self.system_text,)))
        parts: list[Part] = list(self.begin)
        for number, turn in enumerate(turns):
            if number:
                parts += self.between
            role = self._format(turn.role)
            content = _trimmed(turn.content) if self.trim else turn.content
            parts += role.prefix
            parts += [Text(piece, role.learnt) if isinstance(piece, str) else piece for piece in content]
            parts += role.suffix
        parts += self.end
        return joined(parts)

    def _format(self, role: Role) -> RoleFormat:
        return {Role.SYSTEM: self.system, Role.USER: self.user, Role.ASSISTANT: self.assistant}[role]

    def to_map(self) -> dict[str, Any]:
        """Plain maps and lists that `ChatTemplate.from_map` reads back to the same."""
        return {field.name: _plain(getattr(self, field.name)) for field in dataclasses.fields(self)}

    @staticmethod
    def from_map(raw: Any, where: str = "chat template") -> ChatTemplate:
        """From YAML's or JSON's maps and lists.

        `name`; `system`, `user`, `assistant`: maps of `prefix`, `suffix` and `learnt` (true for the assistant alone, where
        it is not given); `begin`, `end`, `between`; `system_text`; `trim`. A prefix and its like are lists of pieces: a
        string is plain text, `{special: NAME}` a special token, `{text: TEXT}` plain text again; `learnt: true` beside
        these for what the model is to say.

        Raises ConfigError for anything else, with its place.
        """
        known = [field.name for field in dataclasses.fields(ChatTemplate)]
        fields = _fields(raw, known, where)
        for missing in ("name", "user", "assistant"):
            if missing not in fields:
                raise ConfigError(f"{where}: {missing!r} is missing; a template needs name, user and assistant")
        name = fields["name"]
        if not isinstance(name, str) or not name:
            raise ConfigError(f"{where}.name: {name!r} is no name")
        system_text = fields.get("system_text")
        if system_text is not None and not isinstance(system_text, str):
            raise ConfigError(f"{where}.system_text: {system_text!r} is neither text nor null")
        if system_text is not None and "system" not in fields:
            raise ConfigError(f"{where}.system_text is given, and no {where}.system that says how to write it")
        return ChatTemplate(
            name=name,
            system=_role(fields.get("system", {}), False, f"{where}.system"),
            user=_role(fields["user"], False, f"{where}.user"),
            assistant=_role(fields["assistant"], True, f"{where}.assistant"),
            begin=_pieces(fields.get("begin", []), f"{where}.begin"),
            end=_pieces(fields.get("end", []), f"{where}.end"),
            between=_pieces(fields.get("between", []), f"{where}.between"),
            system_text=system_text,
            trim=_flag(fields.get("trim", False), f"{where}.trim"),
        )


def joined(parts: Sequence[Part]) -> Document:
    """`parts` with neighbouring plain texts of a kind made one, and without empty ones."""
    result: list[Part] = []
    run: list[str] = []  # of texts that belong together, joined when the run ends: long conversations stay linear
    learnt = False
    for part in parts:
        plain = part if isinstance(part, Text) and not part.special else None
        if plain is not None and not plain.text:
            continue
        if run and (plain is None or plain.learnt is not learnt):
            result.append(Text("".join(run), learnt))
            run = []
        if plain is not None:
            run.append(plain.text)
            learnt = plain.learnt
        else:
            result.append(part)
    if run:
        result.append(Text("".join(run), learnt))
    return tuple(result)


def _trimmed(content: tuple[str | Picture, ...]) -> tuple[str | Picture, ...]:
    pieces = list(content)
    if pieces and isinstance(pieces[0], str):
        pieces[0] = pieces[0].lstrip()
    if pieces and isinstance(pieces[-1], str):
        pieces[-1] = pieces[-1].rstrip()
    return tuple(pieces)


def _plain(value: Any) -> Any:
    if isinstance(value, RoleFormat):
        return {"prefix": _plain(value.prefix), "suffix": _plain(value.suffix), "learnt": value.learnt}
    if isinstance(value, tuple):
        return [{"special" if piece.special else "text": piece.text, "learnt": piece.learnt} for piece in value]
    return value


def _fields(raw: Any, known: Sequence[str], where: str) -> dict[str, Any]:
    if not isinstance(raw, Mapping):
        raise ConfigError(f"{where}: a map with {', '.join(known)} is expected, not {raw!r}")
    for key in raw:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
            hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"
            raise ConfigError(f"{where}: unknown key {key!r}; {hint}")
    return dict(raw)


def _flag(value: Any, where: str) -> bool:
    if not isinstance(value, bool):
        raise ConfigError(f"{where}: {value!r} is neither true nor false")
    return value


def _role(raw: Any, learnt: bool, where: str) -> RoleFormat:
    fields = _fields(raw, ("prefix", "suffix", "learnt"), where)
    return RoleFormat(
        _pieces(fields.get("prefix", []), f"{where}.prefix"),
        _pieces(fields.get("suffix", []), f"{where}.suffix"),
        _flag(fields.get("learnt", learnt), f"{where}.learnt"),
    )


def _pieces(raw: Any, where: str) -> Pieces:
    if not isinstance(raw, (list, tuple)):
        raise ConfigError(f"{where}: a list of texts and {{special: NAME}} is expected, not {raw!r}")
    return tuple(_piece(item, f"{where}[{index}]") for index, item in enumerate(raw))


def _piece(raw: Any, where: str) -> Text:
    if isinstance(raw, str):
        return Text(raw, learnt=False)
    fields = _fields(raw, ("special", "text", "learnt"), where)
    if ("special" in fields) == ("text" in fields):
        raise ConfigError(f"{where}: give `special`, the name of a special token, or `text`, not both and not neither")
    special = "special" in fields
    text = fields["special" if special else "text"]
    if not isinstance(text, str) or not text:
        raise ConfigError(f"{where}: {text!r} is no text")
    return Text(text, _flag(fields.get("learnt", False), f"{where}.learnt"), special)


def _read(text: str) -> Text:
    return Text(text, learnt=False)


def _special(name: str, learnt: bool = False) -> Text:
    return Text(name, learnt, special=True)


def _chatml(role: Role) -> RoleFormat:
    said = role is Role.ASSISTANT
    prefix = (_special("<|im_start|>"), _read(f"{role}\n"))
    return RoleFormat(prefix, (_special("<|im_end|>", said), _read("\n")), said)


def _llama3(role: Role) -> RoleFormat:
    said = role is Role.ASSISTANT
    prefix = (_special("<|start_header_id|>"), _read(str(role)), _special("<|end_header_id|>"), _read("\n\n"))
    return RoleFormat(prefix, (_special("<|eot_id|>", said),), said)


#: The assistant's first space is learnt with its words: most tokenizers make one token of " word", and a model that is asked
#: to answer after "Assistant:" says it.
BUILT_IN: Mapping[str, ChatTemplate] = {
    template.name: template
    for template in (
        # needs no special token; the end of an answer is the newline, which is learnt
        ChatTemplate(
            name="plain",
            system=RoleFormat((), (_read("\n"),)),
            user=RoleFormat((_read("User: "),), (_read("\n"),)),
            assistant=RoleFormat((_read("Assistant:"), Text(" ")), (Text("\n"),), learnt=True),
        ),
        # what LLaVA 1.5 calls "v1", after Vicuna
        ChatTemplate(
            name="llava_v1",
            system=RoleFormat((), (_read(" "),)),
            user=RoleFormat((_read("USER: "),), (_read(" "),)),
            assistant=RoleFormat((_read("ASSISTANT:"), Text(" ")), (_special("</s>", learnt=True),), learnt=True),
            system_text=(
                "A chat between a curious user and an artificial intelligence assistant. "
                "The assistant gives helpful, detailed, and polite answers to the user's questions."
            ),
        ),
        ChatTemplate("chatml", _chatml(Role.SYSTEM), _chatml(Role.USER), _chatml(Role.ASSISTANT)),
        ChatTemplate(
            name="llama3",
            system=_llama3(Role.SYSTEM),
            user=_llama3(Role.USER),
            assistant=_llama3(Role.ASSISTANT),
            begin=(_special("<|begin_of_text|>"),),
            trim=True,
        ),
    )
}


def load_template(name: str) -> ChatTemplate:
    """A built-in template by name, or one out of a .yaml, .yml or .json file.

    Raises ConfigError for a name that is not known, a file that cannot be read, and what is wrong in it.
    """
    if name in BUILT_IN:
        return BUILT_IN[name]
    path = Path(name)
    if path.suffix not in (".yaml", ".yml", ".json"):
        close = difflib.get_close_matches(name, list(BUILT_IN), n=1, cutoff=0.5)
        hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(BUILT_IN)}, or a .yaml or .json file"
        raise ConfigError(f"chat template {name!r} is not known; {hint}")
    import yaml

    try:
        text = path.read_text(encoding="utf-8")
        raw = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ConfigError(f"chat template {name}: cannot be read: {error}") from None
    return ChatTemplate.from_map(raw, str(path))
