"""The image record, and which dtype text is stored in."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_vlm.data.indexed_format import (
    DTYPE_OF_CODE,
    dataset_paths,
    decode_image_record,
    encode_image_record,
    supported_dtype,
    text_dtype,
)
from megatron_vlm.errors import DataError

DTYPES = st.sampled_from(sorted(DTYPE_OF_CODE.values(), key=str))


@given(st.binary(max_size=64), DTYPES)
def test_an_image_record_gives_back_its_bytes(encoded: bytes, dtype: np.dtype) -> None:
    record = encode_image_record(encoded, dtype)
    assert len(record) % dtype.itemsize == 0
    assert decode_image_record(np.frombuffer(record, dtype)) == encoded


def test_an_int32_record_is_pad_count_then_bytes_then_zeros() -> None:
    assert encode_image_record(b"\x01\x02\x03\x04\x05", np.int32) == b"\3\0\0\0" + b"\1\2\3\4\5" + b"\0\0\0"
    assert encode_image_record(b"\x01\x02\x03\x04", np.int32) == b"\0\0\0\0" + b"\1\2\3\4"


@pytest.mark.parametrize("elements", [[], [4, 1], [-1, 1], [3]])
def test_what_is_no_image_record_is_refused(elements: list[int]) -> None:
    with pytest.raises(ValueError, match="pad count"):
        decode_image_record(np.array(elements, dtype=np.int32))


def test_text_takes_16_bits_exactly_where_megatron_does() -> None:
    indexed_dataset = pytest.importorskip("megatron.core.datasets.indexed_dataset")
    for size in (259, 65499, 65500, 65536, 151936):
        assert text_dtype(size) == np.dtype(indexed_dataset.DType.optimal_dtype(size))


def test_dtype_codes_are_megatrons() -> None:
    indexed_dataset = pytest.importorskip("megatron.core.datasets.indexed_dataset")
    for code, dtype in DTYPE_OF_CODE.items():
        assert np.dtype(indexed_dataset.DType.dtype_from_code(code)) == dtype


def test_floats_are_refused() -> None:
    with pytest.raises(ValueError, match="float32"):
        supported_dtype(np.float32)


def test_a_prefix_may_contain_dots() -> None:
    assert dataset_paths("a/pile.v2").data.name == "pile.v2.bin"
    assert dataset_paths("a/pile.v2").quarantine.name == "pile.v2.quarantine.jsonl"


@pytest.mark.parametrize("prefix", [".", "..", "a/..", "/"])
def test_a_prefix_without_a_name_is_refused(prefix: str) -> None:
    with pytest.raises(DataError, match="names no dataset"):
        dataset_paths(prefix)
