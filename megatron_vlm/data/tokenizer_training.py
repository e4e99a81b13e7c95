"""Training a byte-level BPE tokenizer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from megatron_vlm.data.tokenizer import SPECIAL_TOKENS, Tokenizer
from megatron_vlm.errors import ConfigError, DataError

BYTES = 256
SMALLEST_VOCABULARY = BYTES + len(SPECIAL_TOKENS)


def train_bpe(texts: Iterator[str], vocab_size: int, *, min_frequency: int = 2, show_progress: bool = False) -> Tokenizer:
    """Byte-level BPE over `texts`, split into words as GPT-2 does; every text can be encoded and decoded
    back.

    Ids 0, 1 and 2 are `SPECIAL_TOKENS`; then come the 256 bytes, then the merges. The same texts give the
    same tokenizer, in any order of theirs.

    Args:
        texts: what to learn from, a document or a caption at a time.
        vocab_size: number of tokens in all; fewer come out when the texts have too few repeated pairs.
        min_frequency: how often a pair must occur to be merged.
        show_progress: draw progress bars on standard error.

    Raises:
        ConfigError: `vocab_size` has no room for the bytes and the special tokens.
        DataError: there are no texts.
    """
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers, trainers

    if vocab_size < SMALLEST_VOCABULARY:
        raise ConfigError(
            f"vocab_size {vocab_size} has no room for {BYTES} bytes and {len(SPECIAL_TOKENS)} special "
            "tokens; "
            f"ask for at least {SMALLEST_VOCABULARY}, commonly 4096 and more"
        )
    seen = 0

    def counted() -> Iterator[str]:
        nonlocal seen
        for text in texts:
            seen += 1
            yield text

    backend: Any = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=show_progress,
    )
    backend.train_from_iterator(counted(), trainer)
    if not seen:
        raise DataError("there is no text to train a tokenizer on; check the inputs and their keys")
    return Tokenizer(backend.to_str(pretty=True) + "\n")
