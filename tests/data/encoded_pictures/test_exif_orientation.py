"""The orientation field, in both byte orders, and nothing said by anything else."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from megatron_vlm.data.encoded_pictures.exif_orientation import minimal_exif, read_orientation
from tests.data.encoded_pictures.samples import exif


@pytest.mark.parametrize("orientation", range(1, 9))
def test_what_pillow_writes_and_reads(orientation: int) -> None:
    assert read_orientation(exif(orientation).tobytes()[6:]) == orientation
    read = Image.Exif()
    read.load(b"Exif\0\0" + minimal_exif(orientation))
    assert dict(read) == {0x0112: orientation}
    assert read_orientation(minimal_exif(orientation)) == orientation
    assert len(minimal_exif(orientation)) == 26


@pytest.mark.parametrize(("mark", "order"), [(b"II", "<"), (b"MM", ">")])
@pytest.mark.parametrize(("kind", "field"), [(3, "HH"), (4, "I")])
def test_both_byte_orders_and_integer_types(mark: bytes, order: str, kind: int, field: str) -> None:
    value = struct.pack(order + field, *((6, 0) if field == "HH" else (6,)))
    block = mark + struct.pack(order + "HIHHHI", 42, 8, 1, 0x0112, kind, 1) + value
    assert read_orientation(block) == 6
    assert [read_orientation(block[:length]) for length in range(20)] == [1] * 20


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_a_value_without_meaning_is_upright(value: int) -> None:
    assert read_orientation(minimal_exif(value)) == 1


def test_no_field_no_exif() -> None:
    assert read_orientation(exif().tobytes()[6:]) == 1
    assert read_orientation(b"") == 1


@given(st.binary(max_size=80), st.sampled_from([b"", b"II*\0\x08\0\0\0", b"MM\0*\0\0\0\x08"]))
def test_garbage_is_some_orientation(garbage: bytes, start: bytes) -> None:
    assert read_orientation(start + garbage) in range(1, 9)
