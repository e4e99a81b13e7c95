"""Opening what a run reads: the tokenizer's ids, and each named dataset as documents."""

from __future__ import annotations

from pathlib import Path

from megatron_vlm.config.data import TokenCounts
from megatron_vlm.data.documents import DocumentSource
from megatron_vlm.data.indexed_reader import IndexedReader
from megatron_vlm.data.tokenizer import Tokenizer


def token_counts(tokenizer: Tokenizer) -> TokenCounts:
    return TokenCounts(
        vocab_size=tokenizer.vocab_size,
        eod_id=tokenizer.eod_id,
        image_token_id=tokenizer.image_token_id,
        pad_id=tokenizer.pad_id,
    )


def open_sources(prefixes: dict[str, str], tokenizer: Tokenizer, image_tokens: int) -> dict[str, DocumentSource]:
    """Name -> documents. Raises DataError for a dataset that is missing, damaged or of another tokenizer."""
    counts = token_counts(tokenizer)
    return {
        name: DocumentSource(name, IndexedReader(Path(prefix)), counts, image_tokens, tokenizer.fingerprint)
        for name, prefix in prefixes.items()
    }
