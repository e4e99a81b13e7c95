"""A tokenizer as `transformers` opens it: the ids of training, special tokens in their places."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from megatron_vlm.data import atomic_file
from megatron_vlm.data.tokenizer import Tokenizer
from megatron_vlm.data.tokenizers.hugging_face import FILE_NAME, HuggingFaceDefinition
from megatron_vlm.errors import DataError


def write_tokenizer(tokenizer: Tokenizer, source: Path, folder: Path, max_length: int) -> None:
    """tokenizer.json and tokenizer_config.json in `folder`.

    Nothing is put around a text, as nothing was in training: a post-processor that adds tokens is taken out.

    Raises:
        DataError: the tokenizer is of another form than tokenizer.json, whose ids only its own library gives.
    """
    path = source / FILE_NAME if source.is_dir() else source
    form = tokenizer.description()["form"]
    if form != HuggingFaceDefinition.FORM or not path.is_file():
        raise DataError(
            f"{source}: a tokenizer of the form {form} cannot be written as tokenizer.json; save it as one with "
            f"transformers, or export with --no-tokenizer"
        )
    from tokenizers import AddedToken
    from tokenizers import Tokenizer as Library

    library = Library.from_str(path.read_text(encoding="utf-8"))
    names = tokenizer.special_names
    library.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    for name, expected in zip(names, (tokenizer.eod_id, tokenizer.image_token_id, tokenizer.pad_id), strict=True):
        if library.token_to_id(name) != expected:
            raise DataError(f"{path}: {name!r} would get the id {library.token_to_id(name)}, and it was {expected}")
    parsed: dict[str, Any] = json.loads(library.to_str())
    parsed["truncation"] = parsed["padding"] = None
    if (parsed.get("post_processor") or {}).get("type") != "ByteLevel":  # that one adds no token
        parsed["post_processor"] = None
    atomic_file.write_text(folder / FILE_NAME, json.dumps(parsed, ensure_ascii=False))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": names.eod,
        "pad_token": names.pad,
        "image_token": names.image,
        "extra_special_tokens": {"image_token": names.image},
        "model_max_length": max_length,
        "clean_up_tokenization_spaces": False,
        "add_bos_token": False,
        "padding_side": "left",
    }
    atomic_file.write_text(folder / "tokenizer_config.json", json.dumps(config, indent=2) + "\n")
