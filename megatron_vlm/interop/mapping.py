"""Which tensors of another project are which of ours: the list that both ways of a conversion go along."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from megatron_vlm.config.model import LanguageConfig, VisionConfig
from megatron_vlm.errors import UserError
from megatron_vlm.interop.layouts import Layout, Shape


class Unexpressed(UserError):
    """A family, or this project's model, has no way to say something; the message says what."""


@dataclass(frozen=True)
class Entry:
    """One tensor of ours (its global name in a checkpoint), theirs by name, and how the values lie."""

    ours: str
    theirs: tuple[str, ...]
    layout: Layout

    def __post_init__(self) -> None:
        assert len(self.theirs) == len(self.layout.theirs), self.ours


@dataclass(frozen=True)
class Ignored:
    """Tensors of theirs, by a pattern that their whole name matches, that are left out with a reason."""

    pattern: str
    reason: str

    def matches(self, name: str) -> bool:
        return re.fullmatch(self.pattern, name) is not None


@dataclass(frozen=True)
class TensorMapping:
    """The whole of a folder.

    `filled`: tensors that theirs needs and the model has none for, with the value they get on the way out; on the way in
    they are left out.
    """

    entries: tuple[Entry, ...]
    ignored: tuple[Ignored, ...] = ()
    filled: Mapping[str, tuple[Shape, float]] = field(default_factory=dict)

    def prefixed(self, prefix: str) -> TensorMapping:
        """The same under a longer name, as a language model has inside a vision-language one."""
        return TensorMapping(
            tuple(replace(e, theirs=tuple(prefix + name for name in e.theirs)) for e in self.entries),
            tuple(Ignored(re.escape(prefix) + one.pattern, one.reason) for one in self.ignored),
            {prefix + name: value for name, value in self.filled.items()},
        )

    def joined(self, *others: TensorMapping) -> TensorMapping:
        every = (self, *others)
        return TensorMapping(
            tuple(e for m in every for e in m.entries),
            tuple(i for m in every for i in m.ignored),
            {name: value for m in every for name, value in m.filled.items()},
        )

    def why_ignored(self, name: str) -> str | None:
        if name in self.filled:
            return "not used by the features that are taken"
        return next((one.reason for one in self.ignored if one.matches(name)), None)


@dataclass(frozen=True)
class LanguageFamily:
    """A family of language models.

    Attributes:
        model_type: as config.json has it.
        architecture: the class that `transformers` opens it as.
        read: config.json -> our configuration. Raises Unexpressed.
        write: our configuration and the rows of the vocabulary -> config.json without the fields that every family has.
            Raises Unexpressed.
        mapping: our configuration and the rows of the vocabulary -> the tensors of a folder of this class.
        base_prefix: what the class puts before the names of the model below its head.
        head_names: beginnings of the names that are the head's.
    """

    model_type: str
    architecture: str
    read: Callable[[Mapping[str, Any]], LanguageConfig]
    write: Callable[[LanguageConfig, int], dict[str, Any]]
    mapping: Callable[[LanguageConfig, int], TensorMapping]
    base_prefix: str = "model."
    head_names: tuple[str, ...] = ("lm_head.",)


@dataclass(frozen=True)
class VisionFamily:
    """A family of encoders; as `LanguageFamily`. `read` gives the whole tower with its final norm."""

    model_type: str
    architecture: str
    read: Callable[[Mapping[str, Any]], VisionConfig]
    write: Callable[[VisionConfig], dict[str, Any]]
    mapping: Callable[[VisionConfig], TensorMapping]


def refuse(family: str, reasons: Iterable[str]) -> None:
    """Raises Unexpressed with all of them, if there are any."""
    found = [reason for reason in reasons if reason]
    if found:
        raise Unexpressed(f"{family}: " + "; ".join(found))
