"""Which of a tokenizer's tokens end documents, hold pictures' places and fill batches."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from megatron_vlm.data.tokenizers.backend import Hints, SpecialNames, Vocabulary
from megatron_vlm.errors import DataError

DEFAULT = SpecialNames("<|endoftext|>", "<image>", "<|pad|>")
#: tried in this order after the default name, which also is the one that is appended when there is none
USUAL_EOD = ("<|end_of_text|>", "</s>", "<eos>", "<|im_end|>")
USUAL_IMAGE = ("<|image_pad|>", "<image_soft_token>")
USUAL_PAD = ("<pad>",)


def choose(
    vocabulary: Vocabulary,
    hints: Hints,
    origin: str,
    eod: str | None = None,
    image: str | None = None,
    pad: str | None = None,
) -> SpecialNames:
    """The names given, else the usual names that the tokenizer has, else the defaults, which are then appended to it.

    The default names count wherever they are; the other usual ones only where the tokenizer marks them as special: "</s>"
    is a mere HTML tag in some.

    Raises:
        DataError: two of the three would be the same token.
    """
    eod = eod or _first(vocabulary, DEFAULT.eod, USUAL_EOD, hints.eod, ())
    image = image or _first(vocabulary, DEFAULT.image, USUAL_IMAGE, None, (eod,))
    # many tokenizers pad with their end of document: that one must stay a token that is learnt
    pad = pad or _first(vocabulary, DEFAULT.pad, USUAL_PAD, hints.pad, (eod, image))
    if len({eod, image, pad}) < 3:
        raise DataError(f"{origin}: eod {eod!r}, image {image!r} and pad {pad!r} must be three tokens; name others")
    return SpecialNames(eod, image, pad)


def _first(vocabulary: Vocabulary, default: str, usual: tuple[str, ...], hint: str | None, taken: tuple[str, ...]) -> str:
    def candidates() -> Iterator[str]:
        if vocabulary.token_id(default) is not None:
            yield default
        yield from (name for name in usual if vocabulary.is_special(name))
        if hint is not None and vocabulary.token_id(hint) is not None:
            yield hint

    return next(name for name in chain(candidates(), [default]) if name not in taken)
