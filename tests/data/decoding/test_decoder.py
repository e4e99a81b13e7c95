"""One interface: the same pictures from every decoder, broken ones named and grey, and a choice that is told."""

from __future__ import annotations

import dataclasses
import io
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps, features

from megatron_vlm.config.loading import load_config, to_map
from megatron_vlm.config.pictures import PicturesConfig
from megatron_vlm.data.decoding import decoder as decoders
from megatron_vlm.data.decoding.canvas import GREY
from megatron_vlm.data.decoding.decoder import (
    decoder_change,
    open_decoder,
    padding_colour,
    resolve_decoder,
    with_resolved_decoder,
)
from megatron_vlm.data.decoding.pillow_decoder import PillowDecoder
from megatron_vlm.errors import ConfigError
from tests.data.decoding.samples import encode, jpegs, photograph

#: simplejpeg and Pillow's own wheels both have libjpeg-turbo, and agree to the bit; other libjpegs round otherwise
LARGEST_DIFFERENCE = 0 if features.check("libjpeg_turbo") else 3
POLICIES = st.sampled_from(["squash", "centre_crop", "letterbox", "native"])
NAMES = ["pillow", "simplejpeg"]


def decode(name: str, encoded: list[bytes], size: int, resize: str = "squash") -> tuple[np.ndarray, dict[int, str]]:
    out = np.full((len(encoded), size, size, 3), 77, np.uint8)
    reasons = open_decoder(PicturesConfig(decoder=name, resize=resize)).decode(encoded, out)  # type: ignore[arg-type]
    return out, reasons


@settings(max_examples=60)
@given(jpegs(), POLICIES, st.integers(1, 80))
def test_simplejpeg_and_pillow_show_the_same(encoded: bytes, resize: str, size: int) -> None:
    (one, broken), (other, _) = (decode(name, [encoded], size, resize) for name in NAMES)
    assert broken == {}
    assert np.abs(one.astype(int) - other).max() <= LARGEST_DIFFERENCE


@settings(max_examples=80)
@given(jpegs(64), st.data())
def test_damage_is_seen_alike(encoded: bytes, data: st.DataObject) -> None:
    damaged = bytearray(encoded[: data.draw(st.one_of(st.none(), st.integers(0, len(encoded))))])
    for _ in range(data.draw(st.integers(0, 3))):
        if damaged:
            damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    (one, said), (other, also) = (decode(name, [bytes(damaged)], 16) for name in NAMES)
    assert said == also
    assert np.abs(one.astype(int) - other).max() <= LARGEST_DIFFERENCE


@pytest.mark.parametrize("form", ["PNG", "WEBP", "CMYK"])
@pytest.mark.parametrize("resize", ["squash", "centre_crop", "letterbox"])
def test_what_simplejpeg_does_not_take_is_pillows(form: str, resize: str) -> None:
    picture = photograph(50, 90)
    encoded = encode(picture.convert("CMYK")) if form == "CMYK" else encode(picture, form)
    (one, broken), (other, _) = (decode(name, [encoded], 24, resize) for name in NAMES)
    assert broken == {}
    np.testing.assert_array_equal(one, other)
    shown = np.asarray(ImageOps.fit(picture, (24, 24), Image.Resampling.BICUBIC))
    if resize == "centre_crop":
        assert np.abs(one[0].astype(int) - shown).mean() < 12, "the colours are right"


def test_simplejpeg_does_decode_what_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> str:
        raise AssertionError("handed to Pillow")

    monkeypatch.setattr(PillowDecoder, "decode_one", refuse)
    ordinary = [encode(photograph(90, 70)), encode(photograph(90, 70).convert("L")), encode(photograph(9, 9), orientation=6)]
    _, broken = decode("simplejpeg", [*ordinary, encode(photograph(40, 40), progressive=True)], 32)
    assert broken == {}


def alike(mine: np.ndarray, pillows: np.ndarray) -> bool:
    """Pillow may go down before it goes across, and round in between."""
    return int(np.abs(mine - pillows).max()) <= 2


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("height", "width"), [(40, 100), (100, 40), (64, 64), (33, 31), (20, 10)])
def test_policies_are_those_of_pillows_own_functions(name: str, height: int, width: int) -> None:
    """`ImageOps.fit` and `ImageOps.pad`, on pixels that no decoder reduced."""
    encoded = encode(photograph(height, width), quality=95)
    whole = Image.open(io.BytesIO(encoded)).convert("RGB")
    size, bicubic = 64, Image.Resampling.BICUBIC
    cropped = np.asarray(ImageOps.fit(whole, (size, size), bicubic), int)
    assert alike(decode(name, [encoded], size, "centre_crop")[0][0], cropped)
    padded = np.asarray(ImageOps.pad(whole, (size, size), bicubic, color=GREY), int)
    mine = decode(name, [encoded], size, "letterbox")[0][0]
    shift = np.roll(padded, -1, 0 if width > height else 1)  # an odd rest has no middle
    assert alike(mine, padded) or alike(mine, shift)
    assert alike(decode(name, [encoded], size, "squash")[0][0], np.asarray(whole.resize((size, size), bicubic), int))


@pytest.mark.parametrize("name", NAMES)
def test_broken_pictures_are_named_and_grey_and_harm_no_other(name: str) -> None:
    sound = encode(photograph(60, 60))
    given = [sound, b"", sound[: len(sound) // 2], sound, b"<html>not found</html>", encode(photograph(8, 8), "PNG")[:-30]]
    out, reasons = decode(name, given, 16)
    assert sorted(reasons) == [1, 2, 4, 5]
    assert all(reasons.values())
    assert (out[[1, 2, 4, 5]] == GREY).all()
    np.testing.assert_array_equal(out[0], out[3])
    np.testing.assert_array_equal(out[0], decode(name, [sound], 16)[0][0])
    again = [decode(name, given, 16)[1] for _ in range(2)]
    assert again == [reasons, reasons], "no address, no time, nothing that another run would say otherwise"


@pytest.mark.parametrize("name", NAMES)
def test_each_canvas_has_its_own_shape(name: str) -> None:
    """As native grids need it, and in one piece of memory that others may share."""
    memory = np.full(10_000, 7, np.uint8)
    canvases = [memory[10 : 10 + 3 * 28 * 42].reshape(28, 42, 3), memory[5000 : 5000 + 3 * 14 * 14].reshape(14, 14, 3)]
    encoded = [encode(photograph(56, 84)), encode(photograph(30, 30), "PNG")]
    assert open_decoder(PicturesConfig(decoder=name, resize="native")).decode(encoded, canvases) == {}  # type: ignore[arg-type]
    touched = np.flatnonzero(memory != 7)
    assert ((touched >= 10) & (touched < 10 + 3 * 28 * 42) | (touched >= 5000) & (touched < 5000 + 3 * 14 * 14)).all()
    whole = Image.open(io.BytesIO(encoded[0])).convert("RGB").resize((42, 28), Image.Resampling.BICUBIC)
    assert np.abs(canvases[0].astype(int) - np.asarray(whole)).mean() < 3, "half the size: decoded at half"


# -- the choice ---------------------------------------------------------------------------------------------------------


def test_auto_is_simplejpeg_where_it_is_installed_and_pillow_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_decoder(PicturesConfig()).decoder == "simplejpeg"
    monkeypatch.setattr(decoders, "find_spec", lambda module: None if module == "simplejpeg" else object())
    assert resolve_decoder(PicturesConfig()).decoder == "pillow", "DALI has to be asked for"
    with pytest.raises(ConfigError, match=r"simplejpeg is not installed here; pip install simplejpeg, or take pillow"):
        open_decoder(PicturesConfig(decoder="simplejpeg"))


def test_a_decoder_in_a_package_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(decoders.LIBRARIES, "dali", ("no_such_package.dali", "nvidia-dali-cuda120"))
    with pytest.raises(ConfigError, match=r"pip install nvidia-dali-cuda120, or take simplejpeg"):
        resolve_decoder(PicturesConfig(decoder="dali"))


def test_a_run_keeps_the_name_of_its_decoder() -> None:
    config = load_config(preset="tiny")
    resolved = with_resolved_decoder(config)
    assert resolved.data.pictures.decoder == "simplejpeg"
    pictures = dataclasses.replace(resolved.data.pictures, decoder="auto")
    assert dataclasses.replace(resolved, data=dataclasses.replace(resolved.data, pictures=pictures)) == config


def test_a_run_that_goes_on_with_another_decoder_is_told() -> None:
    settings = PicturesConfig(decoder="pillow")
    saved = to_map(with_resolved_decoder(load_config(preset="tiny")))
    told = decoder_change(saved, settings)
    assert told is not None
    assert told.endswith("give --data.pictures.decoder simplejpeg")
    same = load_config(preset="tiny", overrides=["--data.pictures.decoder", "simplejpeg"]).data.pictures
    assert decoder_change(saved, same) is None
    assert decoder_change({"data": {}}, settings) is None, "a checkpoint of before"


def test_padding_is_what_the_encoder_subtracts() -> None:
    assert padding_colour(PicturesConfig(), (0.485, 0.456, 0.406)) == (124, 116, 104)
    assert padding_colour(PicturesConfig(padding="grey"), (0.485, 0.456, 0.406)) == GREY
    out = np.zeros((1, 16, 16, 3), np.uint8)
    settings = PicturesConfig(decoder="pillow", resize="letterbox")
    open_decoder(settings, (0.485, 0.456, 0.406)).decode([encode(photograph(8, 16))], out)
    assert (out[0, :4] == (124, 116, 104)).all()
    assert (out[0, 12:] == (124, 116, 104)).all()
    assert not (out[0, 4:12] == (124, 116, 104)).all(2).any()


def test_decoding_needs_no_torch() -> None:
    names = [f"decoding.{name}" for name in ("dali_decoder", "decoder", "jpeg_decoder", "pillow_decoder", "placement")]
    imports = "; ".join(f"import megatron_vlm.data.{name}" for name in (*names, "pictures", "broken_pictures"))
    code = f"{imports}; import sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
