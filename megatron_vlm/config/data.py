"""What is read: indexed datasets, the tokenizer, and how documents become packs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from megatron_vlm.config.pictures import PicturesConfig


@dataclass(frozen=True)
class DataConfig:
    #: name -> prefix of a Megatron .bin/.idx dataset (plain text or multimodal)
    sources: dict[str, str] = field(default_factory=dict)
    #: source -> prefix of what `megatron-vlm encode` made of it: the stages before the encoder is first trained read
    #: features from there, and decode and encode no picture. All sources with pictures of such a stage need one
    features: dict[str, str] = field(default_factory=dict)
    #: name -> prefix, held out: their loss is logged every `logging.eval_interval` steps
    validation: dict[str, str] = field(default_factory=dict)
    #: tokenizer.json, or a folder that holds one
    tokenizer: str = ""
    #: positions of a pack
    sequence_length: int = 2048
    #: documents longer than a pack: cut into pieces, keep the first piece, or leave out (both counted)
    long_documents: Literal["split", "truncate", "drop"] = "split"
    #: cut a text document to fill the hole at the end of a pack (only with long_documents: split)
    fill_holes: bool = True
    #: the shortest piece that filling a hole may cut off, in tokens
    min_piece: int = 16
    #: packs that are planned together; documents are shuffled over a window, and packed as tightly as its size lets them be
    window_packs: int = 256
    #: the most pictures of a pack, which bounds the encoder's part of a micro-batch; documents with more are left out and
    #: counted. null: as many as fit
    max_pictures: int | None = None
    #: documents of each validation source that are scored; 0: all
    validation_documents: int = 256
    pictures: PicturesConfig = field(default_factory=PicturesConfig)


@dataclass(frozen=True)
class TokenCounts:
    """Ids and sizes that the model and the data path share; filled from the tokenizer, never by hand."""

    vocab_size: int
    eod_id: int
    image_token_id: int
    pad_id: int
