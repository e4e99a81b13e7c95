"""Which reader a file of conversations or of interleaved documents gets, from its name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from megatron_vlm.data.sources.chat_template import ChatTemplate, load_template
from megatron_vlm.data.sources.conversations import ConversationSource
from megatron_vlm.data.sources.interleaved import BeyondLimit, InterleavedSource, MissingPicture
from megatron_vlm.data.sources.picture_store import PictureNaming, PictureStore, picture_store
from megatron_vlm.data.sources.row_files import SUFFIXES
from megatron_vlm.data.sources.suffixes import known_suffix
from megatron_vlm.errors import ConfigError


def conversation_source(
    url: str,
    *,
    pictures: PictureStore | str | Sequence[str] | None = None,
    template: ChatTemplate | str = "plain",
    naming: PictureNaming | str = PictureNaming.PATH,
    **settings: Any,
) -> ConversationSource:
    """The reader of a .jsonl, .json (an array, or one object a line) or .parquet file of conversations; but for .parquet,
    also compressed.

    `pictures` is a folder, one or more tars, or a store; `template` a built-in's name or a file; `settings` are fields of
    `ConversationSource`.

    Raises DataError for another kind of file and tars that are not there, and ConfigError for another setting.
    """
    known_suffix(url, SUFFIXES, "conversations")
    store = _store(pictures)
    chosen = load_template(template) if isinstance(template, str) else template
    return ConversationSource(store, chosen, naming=_choice(PictureNaming, naming, "naming"), **settings)


def interleaved_source(
    url: str,
    *,
    pictures: PictureStore | str | Sequence[str] | None = None,
    naming: PictureNaming | str = PictureNaming.PATH,
    missing: MissingPicture | str = MissingPicture.DROP,
    beyond: BeyondLimit | str = BeyondLimit.DROP,
    **settings: Any,
) -> InterleavedSource:
    """The reader of a .jsonl, .json or .parquet file of documents laid out as OBELICS' or MMC4's; but for .parquet, also
    compressed.

    `pictures` as of `conversation_source`; `settings` are fields of `InterleavedSource`.

    Raises DataError for another kind of file and tars that are not there, and ConfigError for another setting.
    """
    known_suffix(url, SUFFIXES, "interleaved documents")
    return InterleavedSource(
        _store(pictures),
        naming=_choice(PictureNaming, naming, "naming"),
        missing=_choice(MissingPicture, missing, "missing"),
        beyond=_choice(BeyondLimit, beyond, "beyond"),
        **settings,
    )


def _store(pictures: PictureStore | str | Sequence[str] | None) -> PictureStore | None:
    return picture_store(pictures) if isinstance(pictures, (str, list, tuple)) else pictures  # type: ignore[return-value]


def _choice(kind: Any, value: Any, name: str) -> Any:
    try:
        return kind(value)
    except ValueError:
        raise ConfigError(f"{name}: {value!r} is not known; known: {', '.join(kind)}") from None
