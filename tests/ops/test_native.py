"""The native extension: finding it, warning where there is none, and its guards against a careless caller."""

from __future__ import annotations

import importlib
import sys
import threading
import types
import warnings

import numpy as np
import pytest

from megatron_vlm.ops import native
from megatron_vlm.ops.assemble import BatchBuffers
from megatron_vlm.ops.native import EXPECTED_INTERFACE, native_operators


@pytest.fixture
def fresh():
    """Forget what was found before and after, so that the next call looks again."""
    native_operators.cache_clear()
    yield
    native_operators.cache_clear()


def native_module():
    return importlib.import_module("megatron_vlm._native")


def arguments(**changed: object) -> dict[str, object]:
    """Arguments of the native `assemble_packs`: one pack of 4 positions that holds one segment, [1, 2, 3]."""
    return {
        "ids": [np.array([1, 2, 3], np.int32)],
        "modality": np.array([1], np.uint8),
        "loss_from": np.array([0], np.int64),
        "masked_per_segment": np.array([0], np.int64),
        "masked": np.empty((0, 2), np.int64),
        "segments_per_pack": np.array([1], np.int64),
        "sequence_length": 4,
        "image_token_id": 9,
        "pad_id": 0,
        "out": native_module().Outputs(*outputs(4).values()),
    } | changed


def outputs(size: int, **changed: np.ndarray) -> dict[str, np.ndarray]:
    return {name: np.empty(size, dtype) for name, dtype in BatchBuffers.dtypes().items()} | changed


def test_the_extension_is_built_and_fits(fresh):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = native_operators()
    assert found is not None
    assert found.INTERFACE == EXPECTED_INTERFACE


def test_a_missing_extension_warns_once_with_the_remedy(fresh, monkeypatch):
    monkeypatch.setitem(sys.modules, "megatron_vlm._native", None)
    with pytest.warns(RuntimeWarning, match="pip install --no-build-isolation") as caught:
        found = [native_operators(), native_operators()]
    assert found == [None, None]
    assert len(caught) == 1


def test_an_extension_of_other_sources_is_not_used(fresh, monkeypatch):
    stale = types.ModuleType("megatron_vlm._native")
    stale.__file__ = "somewhere/_native.so"
    stale.INTERFACE = EXPECTED_INTERFACE + 1  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "megatron_vlm._native", stale)
    with pytest.warns(RuntimeWarning, match=rf"somewhere/_native.so has interface {EXPECTED_INTERFACE + 1}"):
        assert native_operators() is None


def test_a_missing_extension_is_named_as_the_reason(fresh, monkeypatch):
    def refuse(name: str) -> None:
        raise ImportError("undefined symbol: _Z3abc")

    monkeypatch.setattr(native, "importlib", types.SimpleNamespace(import_module=refuse))
    with pytest.warns(RuntimeWarning, match="undefined symbol: _Z3abc"):
        assert native_operators() is None


def test_a_good_call_writes_into_the_given_arrays():
    arrays = outputs(4)
    cu_seqlens, max_seqlen, image_rows = native_module().assemble_packs(
        **arguments(out=native_module().Outputs(*arrays.values()))
    )
    assert arrays["tokens"].tolist() == [1, 2, 0, 0]
    assert cu_seqlens.tolist() == [0, 2, 4]
    assert max_seqlen == 2
    assert image_rows == 0


read_only = np.empty(4, np.int64)
read_only.flags.writeable = False


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"ids": []}, "one element a segment"),
        ({"ids": [np.array([1, 2, 3], np.int64)]}, "contiguous int32"),
        ({"ids": [np.arange(6, dtype=np.int32)[::2]]}, "contiguous int32"),
        ({"ids": [np.ones((1, 3), np.int32)]}, "one dimension"),
        ({"ids": [np.array([1], np.int32)]}, "pack 0, segment 0: has 1 ids"),
        ({"ids": [np.arange(6, dtype=np.int32)]}, "pack 0, segment 0: has 5 positions, but only 4"),
        ({"modality": np.array([1, 1], np.uint8)}, "one element a segment"),
        ({"loss_from": np.array([-1], np.int64)}, "loss_from is negative"),
        ({"segments_per_pack": np.array([0], np.int64)}, "does not add up"),
        ({"segments_per_pack": np.array([2], np.int64)}, "does not add up"),
        ({"segments_per_pack": np.array([-1], np.int64)}, "does not add up"),
        ({"sequence_length": 5}, "tokens must have 5 elements"),
        ({"sequence_length": -4}, "tokens must have -4 elements"),
        ({"masked_per_segment": np.array([1], np.int64)}, "does not add up to the ranges"),
        ({"masked_per_segment": np.array([-1], np.int64)}, "does not add up to the ranges"),
        ({"masked": np.array([[0, 1]], np.int64)}, "does not add up to the ranges"),
        ({"masked": np.array([0, 1], np.int64)}, r"masked must be \[ranges, 2\]"),
    ],
)
def test_a_careless_call_is_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        native_module().assemble_packs(**arguments(**changed))


def test_outputs_of_another_kind_are_refused_rather_than_copied():
    def call(**changed: np.ndarray) -> None:
        native_module().assemble_packs(**arguments(out=native_module().Outputs(*outputs(4, **changed).values())))

    with pytest.raises(ValueError, match="labels must have 4 elements"):
        call(labels=np.empty(3, np.int64))
    with pytest.raises(ValueError, match="array is not writeable"):
        call(tokens=read_only)
    with pytest.raises(TypeError, match="incompatible constructor arguments"):
        call(tokens=np.empty(4, np.int32))


def test_threads_may_assemble_at_the_same_time():
    operators = native_module()
    packs, length = 64, 4096
    document = np.arange(1, length + 2, dtype=np.int32)
    results: list[np.ndarray] = []

    def work() -> None:
        arrays = outputs(packs * length)
        operators.assemble_packs(
            **arguments(
                ids=[document] * packs,
                modality=np.ones(packs, np.uint8),
                loss_from=np.zeros(packs, np.int64),
                masked_per_segment=np.zeros(packs, np.int64),
                segments_per_pack=np.ones(packs, np.int64),
                sequence_length=length,
                image_token_id=-1,
                out=operators.Outputs(*arrays.values()),
            )
        )
        results.append(arrays["labels"])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    for labels in results:
        np.testing.assert_array_equal(labels, np.tile(document[1:], packs))
