"""DALI beside Pillow, where it is installed. The GPU's path has been run by nobody yet."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from megatron_vlm.data.decoding.canvas import GREY
from megatron_vlm.data.decoding.dali_decoder import BATCH, DaliDecoder
from megatron_vlm.data.decoding.pillow_decoder import PillowDecoder
from tests.data.decoding.samples import encode, photograph

pytest.importorskip("nvidia.dali")

ON_GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
PLACES = [None, pytest.param(0, marks=ON_GPU)]
#: rounding of the two resizers; nvJPEG's own arithmetic on a GPU may add to it
LARGEST_DIFFERENCE = 2
#: on average and at most, where the others decode at a fraction of the size
MEAN_REDUCED_DIFFERENCE, LARGEST_REDUCED_DIFFERENCE = 2, 24


@pytest.mark.parametrize("gpu", PLACES)
@pytest.mark.parametrize("resize", ["squash", "centre_crop", "letterbox"])
def test_it_shows_what_pillow_shows(resize: str, gpu: int | None) -> None:
    sound = [
        encode(photograph(80, 120, 1)),
        encode(photograph(80, 120, 2), subsampling=0, progressive=True),
        encode(photograph(70, 100, 3).convert("L")),
        *(encode(photograph(70, 100, 4), orientation=orientation) for orientation in range(1, 9)),
    ]
    others = [encode(photograph(70, 100, 5), "PNG"), encode(photograph(70, 100, 6).convert("CMYK"))]
    reduced = [encode(photograph(600, 400, 7)), encode(photograph(400, 600, 8), orientation=6)]
    encoded = [*sound, *others, *reduced]
    one, other = np.zeros((2, len(encoded), 64, 64, 3), np.uint8)
    assert DaliDecoder(resize, gpu=gpu).decode(encoded, one) == {}  # type: ignore[arg-type]
    assert PillowDecoder(resize).decode(encoded, other) == {}  # type: ignore[arg-type]
    apart = np.abs(one.astype(int) - other)
    differences = apart.max((1, 2, 3))
    assert differences[: len(sound)].max() <= LARGEST_DIFFERENCE
    assert (differences[len(sound) : -2] == 0).all(), "Pillow's, both times"
    assert differences[-2:].max() <= LARGEST_REDUCED_DIFFERENCE
    assert 0 < apart[-2:].mean() <= MEAN_REDUCED_DIFFERENCE


@pytest.mark.parametrize("gpu", PLACES)
def test_broken_pictures_are_named_and_harm_no_other(gpu: int | None) -> None:
    sound = encode(photograph(60, 60))
    tables = sound.index(b"\xff\xc4")
    damaged = sound[: tables + 5] + b"\xff" * 20 + sound[tables + 25 :]  # whole by its structure, not to be decoded
    encoded = [sound, damaged, b"", sound, sound[:400]]
    one, other = np.zeros((2, len(encoded), 16, 16, 3), np.uint8)
    decoder = DaliDecoder("squash", gpu=gpu)
    assert decoder.decode(encoded, one) == PillowDecoder("squash").decode(encoded, other)
    assert (one[[1, 2, 4]] == GREY).all()
    alone = np.zeros((1, 16, 16, 3), np.uint8)
    assert decoder.decode([sound], alone) == {}, "after a failure it goes on"
    assert (one[[0, 3]] == alone).all()


@pytest.mark.parametrize("gpu", PLACES)
def test_more_pictures_than_a_batch(gpu: int | None) -> None:
    kinds = [encode(photograph(20 + n, 30, n)) for n in range(5)]
    encoded = [kinds[n % 5] for n in range(BATCH + 7)]
    out = np.zeros((len(encoded), 16, 16, 3), np.uint8)
    decoder = DaliDecoder("squash", gpu=gpu)
    assert decoder.decode(encoded, out) == {}
    assert all((out[n] == out[n % 5]).all() for n in range(len(encoded)))
    assert decoder.decode([], []) == {}
