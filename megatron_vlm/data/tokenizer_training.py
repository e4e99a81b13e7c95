"""Training a byte-level BPE tokenizer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from megatron_vlm.data.quarantine import Rejection
from megatron_vlm.data.records import Source, Text
from megatron_vlm.data.sources.opening import InputFile
from megatron_vlm.data.tokenizer import SPECIAL_TOKENS, Tokenizer
from megatron_vlm.errors import ConfigError, DataError

BYTES = 256
SMALLEST_VOCABULARY = BYTES + len(SPECIAL_TOKENS)


class TrainingTexts:
    """The texts of some files, for `train_bpe`: of every document, learnt or only read; pictures and the names of special
    tokens are none.

    Records that cannot be used are passed over and counted.

    Args:
        inputs: each file with what reads it.

    Attributes:
        texts, rejected: how many texts have been given so far, and records passed over.
    """

    def __init__(self, inputs: Sequence[tuple[InputFile, Source]]) -> None:
        self.texts = self.rejected = 0
        self._inputs = inputs

    def __iter__(self) -> Iterator[str]:
        """Reads the files anew. Raises DataError for a file that cannot be opened, or is not of its format at all."""
        self.texts = self.rejected = 0
        for file, source in self._inputs:
            for unit in source.units(file.url, file.size, max(file.size, 1)):
                for record in source.read(unit):
                    if isinstance(record, Rejection):
                        self.rejected += 1
                        continue
                    for document in record.documents:
                        for part in document:
                            if isinstance(part, Text) and not part.special:
                                self.texts += 1
                                yield part.text


def train_bpe(texts: Iterable[str], vocab_size: int, *, min_frequency: int = 2, show_progress: bool = False) -> Tokenizer:
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
