"""What a run opens by name, and what it refuses to open."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from megatron_vlm.data.indexed_writer import IndexedWriter
from megatron_vlm.data.opening import open_sources, token_counts
from megatron_vlm.data.tokenizer import Tokenizer
from megatron_vlm.errors import DataError


def write(prefix: Path, ids: list[int], fingerprint: str | None) -> str:
    with IndexedWriter(prefix, np.int32) as writer:
        writer.add_text(ids)
        writer.end_document()
        metadata = {"tool_version": "1", "kind": "text", "tokenizer_fingerprint": fingerprint}
        writer.finalize(metadata if fingerprint else None)
    return str(prefix)


def test_the_ids_come_from_the_tokenizer(tokenizer: Tokenizer) -> None:
    counts = token_counts(tokenizer)
    assert counts.vocab_size == tokenizer.vocab_size
    assert (counts.eod_id, counts.image_token_id, counts.pad_id) == (
        tokenizer.eod_id,
        tokenizer.image_token_id,
        tokenizer.pad_id,
    )
    assert len({counts.eod_id, counts.image_token_id, counts.pad_id}) == 3


def test_names_are_kept_in_order(tokenizer: Tokenizer, tmp_path: Path) -> None:
    ids = tokenizer.encode("a red square")
    prefixes = {name: write(tmp_path / name, ids, tokenizer.fingerprint) for name in ("z", "a")}
    opened = open_sources(prefixes, tokenizer, image_tokens=4)
    assert list(opened) == ["z", "a"]
    assert [source.name for source in opened.values()] == ["z", "a"]
    assert opened["z"].ids(0, 0, len(ids))[0].tolist() == ids
    assert opened["z"].image_tokens == 4
    assert open_sources({}, tokenizer, 4) == {}


def test_a_dataset_without_metadata_is_taken_at_its_word(tokenizer: Tokenizer, tmp_path: Path) -> None:
    assert open_sources({"x": write(tmp_path / "x", [5, 6], None)}, tokenizer, 4)["x"].totals().positions == 1


def test_another_tokenizers_dataset_is_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"x was made with another tokenizer.*--data\.tokenizer"):
        open_sources({"x": write(tmp_path / "x", [5, 6], "0" * 64)}, tokenizer, 4)


def test_a_missing_dataset_is_named(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.idx does not exist"):
        open_sources({"x": str(tmp_path / "gone")}, tokenizer, 4)
