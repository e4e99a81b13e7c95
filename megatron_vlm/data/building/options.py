"""What becomes of a record on its way into a dataset."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from megatron_vlm.data.encoded_pictures.filters import CaptionFilter, PictureFilter
from megatron_vlm.data.encoded_pictures.picture_header import MAX_PIXELS
from megatron_vlm.data.encoded_pictures.reencode import Reencode
from megatron_vlm.errors import ConfigError


class Duplicates(StrEnum):
    """Which pictures are one picture: those of the same bytes, or those that look alike to a 64-bit difference hash."""

    KEEP = "keep"
    SAME_BYTES = "sha256"
    LOOK_ALIKE = "dhash"


@dataclass(frozen=True)
class Split:
    """Named parts of a dataset, by shares. A document's part is drawn by a hash of its first picture, or of its text where
    it has none: what is the same is never in two parts, and more data moves nothing that is there.

    Raises ConfigError for fewer than two parts, shares that are not positive, and a name twice.
    """

    names: tuple[str, ...]
    shares: tuple[float, ...]
    seed: int = 0

    def __post_init__(self) -> None:
        if len(self.names) < 2 or len(self.names) != len(self.shares):
            raise ConfigError(f"a split needs two or more names and a share for each, not {self.names} and {self.shares}")
        if len(set(self.names)) < len(self.names) or not all(self.names) or any("/" in name for name in self.names):
            raise ConfigError(f"the parts of a split need names of their own that can end a file's name, not {self.names}")
        if len(self.names) > 255 or not all(0 < share < float("inf") for share in self.shares):
            raise ConfigError(f"the shares of a split must be positive, not {self.shares}")

    @classmethod
    def parse(cls, text: str, seed: int = 0) -> Split:
        """From "train=98,valid=1,test=1", or Megatron's "98,1,1" (train, valid and test)."""
        usual = ("train", "valid", "test")
        names, shares = [], []
        for number, entry in enumerate(text.split(",")):
            name, equals, share = entry.partition("=")
            if not equals:
                name, share = usual[number] if number < len(usual) else "", name
            try:
                shares.append(float(share))
            except ValueError:
                raise ConfigError(f"--split {text}: {share!r} is no share; write train=98,valid=1,test=1") from None
            names.append(name.strip())
        kept = [(name, share) for name, share in zip(names, shares, strict=True) if share]
        return cls(tuple(name for name, _ in kept), tuple(share for _, share in kept), seed)

    def part(self, content: bytes) -> int:
        """Which part `content` belongs to, from 0."""
        draw = hashlib.blake2b(content, digest_size=8, key=str(self.seed).encode()).digest()
        at = int.from_bytes(draw, "little") / 2**64 * sum(self.shares)
        borders = itertools.accumulate(self.shares)
        return min(sum(at >= border for border in borders), len(self.shares) - 1)


@dataclass(frozen=True)
class BuildOptions:
    """What is done with every record, whatever its format.

    Attributes:
        append_eod: end each document with the tokenizer's end-of-document token.
        thorough: decode every picture whole; otherwise its header and structure are checked, at a hundredth of the cost.
        max_pixels: a picture with more is set aside as oversized, before anything is allocated for it.
        reencode: how pictures are made anew; None keeps every byte.
        pictures, captions: what is filtered out. `captions` looks at all text together of a document with
            pictures, which of a captioned picture is its caption; a record of several documents goes with the first refused.
        duplicates: what to do with a picture that was there before; only records of one picture are looked at.
        max_tokens: a document with more text tokens is set aside; None for no bound.
        split: parts that documents are spread over; None for one dataset.
        shard_bytes: a new dataset is begun where the .bin would grow past this; None for one.
        strict: stop at the first record that cannot be used instead of setting it aside.
    """

    append_eod: bool = True
    thorough: bool = False
    max_pixels: int = MAX_PIXELS
    reencode: Reencode | None = None
    pictures: PictureFilter = field(default_factory=PictureFilter)
    captions: CaptionFilter = field(default_factory=CaptionFilter)
    duplicates: Duplicates = Duplicates.KEEP
    max_tokens: int | None = None
    split: Split | None = None
    shard_bytes: int | None = None
    strict: bool = False

    def __post_init__(self) -> None:
        for name in ("max_pixels", "max_tokens", "shard_bytes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}; it must be at least 1")

    def outputs(self) -> Sequence[str]:
        """Names of the parts, or one empty name."""
        return self.split.names if self.split else ("",)
