"""From a path to a tokenizer's definition: which form a file or a folder is of, and what the files beside it say."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_vlm.data import atomic_file
from megatron_vlm.data.tokenizers import hugging_face, sentencepiece_model, tiktoken_ranks
from megatron_vlm.data.tokenizers.backend import Definition, Hints, SpecialNames
from megatron_vlm.data.tokenizers.hugging_face import HuggingFaceDefinition
from megatron_vlm.data.tokenizers.sentencepiece_model import SentencePieceDefinition
from megatron_vlm.data.tokenizers.tiktoken_ranks import PATTERNS, SPECIAL_TOKENS, TiktokenDefinition
from megatron_vlm.errors import DataError

#: our own file beside a tokenizer: {"eod": NAME, "image": NAME, "pad": NAME, "pattern": ..., "special_tokens": {NAME: ID}}
SETTINGS = "tokenizer_settings.json"
CONFIG = "tokenizer_config.json"
SPECIAL_TOKENS_MAP = "special_tokens_map.json"
ADDED_TOKENS = "added_tokens.json"

#: main files, in the order in which a folder is searched for one
_NAMES = (
    hugging_face.FILE_NAME,
    sentencepiece_model.FILE_NAME,
    "spiece.model",
    "sentencepiece.bpe.model",
    tiktoken_ranks.FILE_NAME,
    "tiktoken.model",
)


@dataclass(frozen=True)
class Found:
    """A tokenizer's files: `settings` are those of tokenizer_settings.json, {} without it."""

    definition: Definition
    hints: Hints
    settings: dict[str, Any]
    origin: str


def find(path: Path, pattern: str | None = None, special_tokens: Mapping[str, int] | None = None) -> Found:
    """Read a tokenizer's file, or the folder that holds one.

    Args:
        path: tokenizer.json; a SentencePiece .model; a tiktoken rank file, whatever its name; or a folder with one of
            them, with vocab.json and merges.txt of GPT-2, or with a single file of one of the forms.
        pattern: for a rank file: a key of PATTERNS or a regular expression; by default what the settings file says, or the
            file's name.
        special_tokens: for a rank file or a SentencePiece model: names and ids of those that it does not hold; by default
            what the settings file says, what tokenizer_config.json or added_tokens.json list, or a rank file's name tells.

    Raises:
        DataError: there is none, it cannot be read, or a rank file's pattern is not known.
    """
    file = _main_file(path) if path.is_dir() else path
    content = _read(file)
    settings = _read_json(file.parent / SETTINGS)
    config = {**_read_json(file.parent / SPECIAL_TOKENS_MAP), **_read_json(file.parent / CONFIG)}
    definition: Definition
    if file.name == "vocab.json":
        definition = HuggingFaceDefinition(_from_gpt2_files(file, config))
    elif tiktoken_ranks.looks_like_ranks(content):
        definition = _ranks(file, content, pattern, special_tokens, settings, config)
    elif file.suffix == ".model":
        definition = SentencePieceDefinition(content, _special(file, special_tokens, settings, config) or ())
    elif file.suffix == ".tiktoken":
        raise DataError(f"{file} is not a tiktoken rank file: its first line is not a token in base64 and its rank")
    else:
        try:
            text = content.decode()
        except UnicodeDecodeError as error:
            raise DataError(f"{file} cannot be read as a tokenizer.json: {error}") from error
        definition = HuggingFaceDefinition(_with_config(text, config, str(file)))
    return Found(definition, Hints(_name(config, "eos_token"), _name(config, "pad_token")), settings, str(file))


def write(definition: Definition, names: SpecialNames, folder: Path, default: bool) -> Path:
    """Write what `find` reads back into `folder`, which is made if need be; the path of the main file.

    Args:
        default: whether `names` need not be written: the same would be chosen from the main file alone.
    """
    folder.mkdir(parents=True, exist_ok=True)
    settings = definition.settings() | ({} if default else names._asdict())
    if settings:
        atomic_file.write_text(folder / SETTINGS, json.dumps(settings, indent=1) + "\n")
    else:
        (folder / SETTINGS).unlink(missing_ok=True)
    return definition.write(folder)


def _main_file(folder: Path) -> Path:
    for name in _NAMES:
        if (folder / name).is_file():
            return folder / name
    found = sorted([*folder.glob("*.tiktoken"), *folder.glob("*.model")])
    if len(found) > 1:
        raise DataError(f"{folder} holds several tokenizers ({', '.join(f.name for f in found)}); name one of the files")
    if not found and (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        return folder / "vocab.json"
    return found[0] if found else folder / hugging_face.FILE_NAME


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"{file} does not exist; `megatron-vlm train-tokenizer` makes a tokenizer.json") from error
    except OSError as error:
        raise DataError(f"{file} cannot be read as a tokenizer: {error}") from error


def _read_json(file: Path) -> dict[str, Any]:
    """{} where there is no such file."""
    if not file.is_file():
        return {}
    try:
        parsed = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read as JSON: {error}") from error
    if not isinstance(parsed, dict):
        raise DataError(f"{file} is not a JSON object")
    return parsed


def _name(config: Mapping[str, Any], key: str) -> str | None:
    """Of a special token, which is a name or an object with its "content"."""
    value = config.get(key)
    value = value.get("content") if isinstance(value, dict) else value
    return value if isinstance(value, str) else None


def _ranks(
    file: Path,
    content: bytes,
    pattern: str | None,
    special_tokens: Mapping[str, int] | None,
    settings: Mapping[str, Any],
    config: Mapping[str, Any],
) -> TiktokenDefinition:
    known = tiktoken_ranks.known_name(file.name)
    said = pattern or settings.get("pattern") or known
    if not isinstance(said, str):
        raise DataError(
            f"{file}: a tiktoken rank file does not say how text is split, and its name is none of "
            f"{', '.join(PATTERNS)}; give pattern=, one of these or a regular expression, or write it into "
            f'{SETTINGS} beside it: {{"pattern": "cl100k", "special_tokens": {{"<|endoftext|>": 100257}}}}'
        )
    special = _special(file, special_tokens, settings, config)
    if special is None:
        special = tuple(SPECIAL_TOKENS[known].items()) if known else ()
    return TiktokenDefinition(content, PATTERNS.get(said, said), special)


def _special(
    file: Path, given: Mapping[str, int] | None, settings: Mapping[str, Any], config: Mapping[str, Any]
) -> tuple[tuple[str, int], ...] | None:
    """Special tokens that a form does not hold itself: those given, else our settings', else what Hugging Face's files
    beside it list; None where nothing does."""
    special = settings.get("special_tokens") if given is None else given
    listed = config.get("added_tokens_decoder")
    try:
        if special is None and listed:
            special = {token["content"]: i for i, token in listed.items()}
        if special is None:
            special = _read_json(file.parent / ADDED_TOKENS) or None
        return None if special is None else tuple((str(name), int(i)) for name, i in special.items())
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{file}: special_tokens must give each name an id: {special or listed!r}") from error


def _with_config(text: str, config: Mapping[str, Any], origin: str) -> str:
    """tokenizer.json with the added tokens that only tokenizer_config.json lists, as transformers has them; the same text
    where there is none."""
    listed = config.get("added_tokens_decoder")
    if not listed:
        return text
    try:
        parsed = json.loads(text)
        added = {token["content"]: token for token in parsed.setdefault("added_tokens", [])}
        changed = False
        for i, token in sorted(listed.items(), key=lambda item: int(item[0])):
            special = bool(token.get("special"))
            if token["content"] not in added:
                fields = ("single_word", "lstrip", "rstrip", "normalized")
                flags = {field: bool(token.get(field)) for field in fields}
                parsed["added_tokens"].append({"id": int(i), "content": token["content"], **flags, "special": special})
                changed = True
            elif special and not added[token["content"]]["special"]:
                added[token["content"]]["special"] = changed = True
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(f"{origin} and {CONFIG} beside it do not fit: {type(error).__name__}: {error}") from error
    return json.dumps(parsed) if changed else text


def _from_gpt2_files(vocab: Path, config: Mapping[str, Any]) -> str:
    """tokenizer.json of GPT-2's own files: a byte-level BPE whose merges are a text file."""
    kind = config.get("tokenizer_class", "GPT2Tokenizer")
    if not str(kind).startswith("GPT2"):
        raise DataError(
            f"{vocab}: a {kind} splits text in its own way, which vocab.json and merges.txt do not say; "
            "load it with transformers and save_pretrained writes its tokenizer.json"
        )
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    try:
        backend: Any = Tokenizer(models.BPE.from_file(str(vocab), str(vocab.parent / "merges.txt")))
    except Exception as error:  # the Rust side raises bare Exception
        raise DataError(f"{vocab} and merges.txt are no vocabulary of GPT-2's form: {error}") from error
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=bool(config.get("add_prefix_space")))
    backend.decoder = decoders.ByteLevel()
    end = "<|endoftext|>"
    if backend.token_to_id(end) is not None:
        backend.add_special_tokens([end])
    text: str = backend.to_str()
    return _with_config(text, config, str(vocab))
