"""Sound records that are better left out: pictures too small or too long, captions that say too little or too much."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_vlm.data.encoded_pictures.picture_header import PictureHeader
from megatron_vlm.data.encoded_pictures.unusable import Defect
from megatron_vlm.data.quarantine import Reason
from megatron_vlm.errors import ConfigError


@dataclass(frozen=True, slots=True)
class PictureFilter:
    """Bounds on the size of a picture, all of them inclusive; the defaults let all pass.

    Attributes:
        min_side: pixels that the shorter side has at least.
        max_aspect: longer side / shorter side at most; 1.0 lets squares pass. None: any.
        max_pixels: height * width at most. None: any.

    Raises:
        ConfigError: a bound that nothing or everything meets.
    """

    min_side: int = 1
    max_aspect: float | None = None
    max_pixels: int | None = None

    def __post_init__(self) -> None:
        if self.min_side < 1:
            raise ConfigError(f"min_side is {self.min_side}: give a number of pixels from 1, such as 64")
        if self.max_aspect is not None and not self.max_aspect >= 1:
            raise ConfigError(f"max_aspect is {self.max_aspect}: give longer side / shorter side, from 1, such as 5.0")
        if self.max_pixels is not None and self.max_pixels < 1:
            raise ConfigError(f"max_pixels is {self.max_pixels}: give a number of pixels, such as 50000000")

    def refusal(self, header: PictureHeader) -> Defect | None:
        """None for a picture that stays, else the reason and what was measured."""
        shorter, longer = sorted((header.height, header.width))
        size = f"{header.width}x{header.height} pixels"
        if shorter < self.min_side:
            return Reason.SMALL_IMAGE, f"{size}: a side of less than {self.min_side}"
        if self.max_pixels is not None and shorter * longer > self.max_pixels:
            return Reason.OVERSIZED_IMAGE, f"{size}: more than {self.max_pixels}"
        if self.max_aspect is not None and longer > shorter * self.max_aspect:
            return Reason.EXTREME_ASPECT, f"{size}: sides of more than {self.max_aspect:g} to 1"
        return None


@dataclass(frozen=True, slots=True)
class CaptionFilter:
    """Bounds on the length of a caption, all of them inclusive; the defaults let all pass.

    Attributes:
        min_chars, max_chars: Unicode characters, without white space around them. None: any number.
        min_words: runs without white space; leave it at 0 for languages that put none between words.

    Raises:
        ConfigError: a bound below 0, or no length between the two.
    """

    min_chars: int = 0
    max_chars: int | None = None
    min_words: int = 0

    def __post_init__(self) -> None:
        for name, value in (("min_chars", self.min_chars), ("min_words", self.min_words)):
            if value < 0:
                raise ConfigError(f"{name} is {value}: give a number from 0")
        if self.max_chars is not None and self.max_chars < max(1, self.min_chars):
            raise ConfigError(f"max_chars is {self.max_chars}: give a number from {max(1, self.min_chars)}, or leave it out")

    def refusal(self, caption: str) -> Defect | None:
        """None for a caption that stays, else the reason and what was counted."""
        chars = len(caption.strip())
        if chars < self.min_chars:
            return Reason.SHORT_CAPTION, f"{chars} characters, fewer than {self.min_chars}"
        if self.max_chars is not None and chars > self.max_chars:
            return Reason.LONG_CAPTION, f"{chars} characters, more than {self.max_chars}"
        if self.min_words:
            words = len(caption.split())
            if words < self.min_words:
                return Reason.SHORT_CAPTION, f"{words} words, fewer than {self.min_words}"
        return None
