"""Which reader a file needs, by its name. Only that one is imported: a run's start should not wait for the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from megatron_vlm.data.captions import CaptionChoice
from megatron_vlm.data.records import Source
from megatron_vlm.data.sources.suffixes import (
    JSON_SUFFIXES,
    PARQUET_SUFFIXES,
    TAR_SUFFIXES,
    TEXT_SUFFIXES,
    known_suffix,
)


def text_source(url: str, key: str = "text", *, separator: str | None = None) -> Source:
    """What reads text documents out of the file at `url`, by its name.

    Args:
        key: field or column that holds the text.
        separator: what parts the documents of a .txt, as `PlainText` takes it; by default a file is a document.

    Raises:
        DataError: a name with no known suffix, or with a compression that is not read.
        ConfigError: as the sources do.
    """
    match known_suffix(url, (*JSON_SUFFIXES, *PARQUET_SUFFIXES, *TAR_SUFFIXES, *TEXT_SUFFIXES), "text"):
        case suffix if suffix in JSON_SUFFIXES:
            from megatron_vlm.data.sources.json_lines import JsonLines

            return JsonLines(key)
        case suffix if suffix in PARQUET_SUFFIXES:
            from megatron_vlm.data.sources.parquet_text import ParquetText

            return ParquetText(key)
        case suffix if suffix in TAR_SUFFIXES:
            from megatron_vlm.data.sources.text_tar import TextTar

            return TextTar(key)
        case _:
            from megatron_vlm.data.sources.plain_text import PlainText

            return PlainText(separator)


def image_text_source(
    url: str,
    *,
    captions: str | Mapping[str, float] | None = None,
    choice: CaptionChoice = CaptionChoice.FIRST,
    seed: int = 0,
    image: str | None = None,
    folder: str | None = None,
) -> Source:
    """What reads captioned pictures out of the file at `url`, by its name.

    Args:
        captions: the field that holds the caption, or the weights of several, of which one is drawn for each record; as the
            format names its fields: "txt" or "caption" (of the .json, or "syn.json:caption") of a tar, a column of a
            .parquet, a field of a .jsonl. By default what is common in the format.
        choice: what to do with a list of captions.
        seed: seeds what is drawn.
        image: the column of a .parquet with the pictures, or the field of a .jsonl with their paths.
        folder: the folder of the pictures of a .jsonl; by default the one that the file lies in.

    Raises:
        DataError: a name with no known suffix, or with a compression that is not read.
        ConfigError: weights that are no positive numbers, fields that the format cannot have.
    """
    from megatron_vlm.data.sources.caption_rule import caption_rule

    rule = caption_rule(captions, choice, seed)
    match known_suffix(url, (*JSON_SUFFIXES, *PARQUET_SUFFIXES, *TAR_SUFFIXES), "captioned pictures"):
        case suffix if suffix in TAR_SUFFIXES:
            from megatron_vlm.data.sources.image_text_tar import ImageTextTar

            return ImageTextTar(replace(rule, fields=tuple((_tar_field(name), weight) for name, weight in rule.fields)))
        case suffix if suffix in PARQUET_SUFFIXES:
            from megatron_vlm.data.sources.image_text_parquet import ImageTextParquet

            return ImageTextParquet(rule, image)
        case _:
            from megatron_vlm.data.sources.image_text_jsonl import ImageTextJsonl

            return ImageTextJsonl(rule, image or "image", folder)


def _tar_field(name: str) -> str:
    """As `ImageTextTar` names it: "caption" is of the .json, unless it is a text member's suffix."""
    return name if ":" in name or name.rpartition(".")[2] == "txt" else f"json:{name}"
