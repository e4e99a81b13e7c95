"""Batches of captioned pictures are laid out at once: as the general way lays them out, whatever is among them."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from megatron_vlm.data.building.options import BuildOptions, Duplicates, Split
from megatron_vlm.data.building.prepared import PreparedBatch, Preparer, as_columns
from megatron_vlm.data.encoded_pictures.filters import CaptionFilter, PictureFilter
from megatron_vlm.data.quarantine import Reason, Rejection
from megatron_vlm.data.records import Picture, Record, Text
from megatron_vlm.data.tokenizer import Tokenizer


def picture(format: str, height: int, width: int, seed: int) -> bytes:
    stream = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, format)
    return stream.getvalue()


def records() -> list[Record | Rejection]:
    """Sound pairs of all formats, broken ones, small ones, the same one twice, and what a reader set aside."""
    made: list[Record | Rejection] = []
    for number in range(40):
        encoded = picture(("JPEG", "PNG", "WEBP")[number % 3], 8 + number, 9 + 2 * number, number % 30)
        if number % 7 == 3:
            encoded = encoded[: len(encoded) // 2]
        caption = f"a picture, the {number}th <|endoftext|> é" if number % 5 else "short"
        made.append(Record(f"k{number}", 512 * number, ((Picture(encoded), Text(caption)),), 0, number))
    made[11] = Rejection("x.tar", "k11", Reason.MISSING_CAPTION, "no 'txt'", 512 * 11, 11)
    made.append(replace(made[4], number=40))
    return made


def content(batch: PreparedBatch) -> tuple[object, ...]:
    columns = {name: values.tolist() for name, values in as_columns(batch).items()}
    return b"".join(batch.pieces), columns, batch.rejections, batch.filtered, batch.tokens


@pytest.mark.parametrize(
    "options",
    [
        BuildOptions(),
        BuildOptions(append_eod=False),
        BuildOptions(pictures=PictureFilter(min_side=14, max_aspect=1.9), captions=CaptionFilter(min_chars=8)),
        BuildOptions(duplicates=Duplicates.SAME_BYTES, split=Split(("train", "valid"), (70.0, 30.0), 3)),
        BuildOptions(duplicates=Duplicates.LOOK_ALIKE, thorough=True, max_pixels=2000),
    ],
)
@pytest.mark.parametrize("dtype", ["<u2", "<i4", "<i8"])
def test_same_as_the_general_way(tokenizer: Tokenizer, options: BuildOptions, dtype: str) -> None:
    given = records()
    at_once = Preparer(tokenizer, options, np.dtype(dtype))
    assert at_once._are_pairs(given)
    # with a bound on tokens, each document is looked at by itself
    general = Preparer(tokenizer, replace(options, max_tokens=1 << 20), np.dtype(dtype))
    assert not general._are_pairs(given)
    found = content(at_once.prepare("x.tar", given, False))
    assert found == content(general.prepare("x.tar", given, False))
    assert len(found[0]) > 1000  # type: ignore[arg-type]
    assert len(found[2]) >= 5  # type: ignore[arg-type]


def test_a_caption_without_tokens_is_set_aside_alone(tokenizer: Tokenizer) -> None:
    given = records()[:3]
    given.append(Record("empty", 0, ((Picture(picture("PNG", 8, 8, 1)), Text("")),), 0, 3))
    batch = Preparer(tokenizer, BuildOptions(), np.dtype("<i4")).prepare("x.tar", given, False)
    assert batch.records == [0, 1, 2]
    assert [(r.key, r.reason) for r in batch.rejections] == [("empty", Reason.EMPTY_TEXT)]


def test_others_go_the_general_way(tokenizer: Tokenizer) -> None:
    preparer = Preparer(tokenizer, BuildOptions(), np.dtype("<i4"))
    shown = Picture(picture("PNG", 8, 8, 1))
    for document in ((Text("a"), shown), (shown, Text("a", learnt=False)), (shown, Text("a"), Text("b")), (shown,)):
        assert not preparer._are_pairs([Record("", 0, (document,), 0, 0)])
    pair = (shown, Text("a"))
    assert not preparer._are_pairs([Record("", 0, (pair, pair), 0, 0)])
