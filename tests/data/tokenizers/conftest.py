"""Tokenizers of other libraries, made in a moment from the sample's prose."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

SAMPLE = Path(__file__).parents[3] / "examples" / "sample_data"

MakeModel = Callable[..., Path]


@pytest.fixture(scope="session")
def lines() -> list[str]:
    with zstandard.open(SAMPLE / "prose" / "heldout.jsonl.zst", "rt", encoding="utf-8") as stream:
        texts = [json.loads(line)["text"] for line in stream]
    return [line for text in texts for line in text.splitlines() if line][:1500]


@pytest.fixture(scope="session")
def make_model(lines: list[str], tmp_path_factory: pytest.TempPathFactory) -> MakeModel:
    """Train a SentencePiece model with the trainer's own options; the same options give the same file."""
    import sentencepiece

    made: dict[str, Path] = {}

    def make(**options: object) -> Path:
        key = repr(sorted(options.items()))
        if key not in made:
            out = io.BytesIO()
            arguments = {"vocab_size": 600, "minloglevel": 2, **options}
            sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(lines), model_writer=out, **arguments)
            made[key] = tmp_path_factory.mktemp("model") / "tokenizer.model"
            made[key].write_bytes(out.getvalue())
        return made[key]

    return make


@pytest.fixture(scope="session")
def ranks() -> dict[bytes, int]:
    """The merges of the sample's tokenizer as tiktoken has them: the bytes of a token and its rank."""
    from tokenizers.pre_tokenizers import ByteLevel

    definition = json.loads((SAMPLE / "tokenizer" / "tokenizer.json").read_text(encoding="utf-8"))
    # letters that stand for bytes: those that stand for themselves, and those that stand for the other bytes, in order
    letters = sorted(ByteLevel.alphabet())
    own = [letter for letter in letters if ord(letter) < 256]
    others = [byte for byte in range(256) if chr(byte) not in own]
    bytes_of = {letter: ord(letter) for letter in own} | dict(zip(letters[len(own) :], others, strict=True))
    words = [bytes([byte]) for byte in range(256)]
    words += [bytes(bytes_of[letter] for letter in "".join(pair)) for pair in definition["model"]["merges"][:1000]]
    return {word: rank for rank, word in enumerate(dict.fromkeys(words))}


@pytest.fixture(scope="session")
def rank_file(ranks: dict[bytes, int]) -> bytes:
    return b"".join(base64.b64encode(word) + b" " + str(rank).encode() + b"\n" for word, rank in ranks.items())
