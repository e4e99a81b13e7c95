"""Finding the native extension, and telling the user once when there is none that fits."""

from __future__ import annotations

import functools
import importlib
import warnings
from collections.abc import Sequence
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt

#: the `INTERFACE` of csrc/module.cpp that this package was written against
EXPECTED_INTERFACE = 8

Integers = npt.NDArray[np.int64]


class NativeOperators(Protocol):
    """What `megatron_vlm._native` offers; the operators of this package call it, and check their input
    first."""

    INTERFACE: int

    def Outputs(self, *arrays: npt.NDArray[Any]) -> object: ...

    def IndexedSource(self, *arguments: object) -> object: ...

    def assemble_packs(
        self,
        ids: list[npt.NDArray[np.int32]],
        modality: npt.NDArray[np.uint8],
        loss_from: npt.NDArray[np.int64],
        masked_per_segment: npt.NDArray[np.int64],
        masked: npt.NDArray[np.int64],
        segments_per_pack: npt.NDArray[np.int64],
        sequence_length: int,
        image_token_id: int,
        pad_id: int,
        out: object,
    ) -> tuple[npt.NDArray[np.int32], int, int]: ...

    def assemble_spans(
        self,
        sources: Sequence[object],
        spans: npt.NDArray[np.int64],
        spans_per_pack: npt.NDArray[np.int64],
        sequence_length: int,
        image_token_id: int,
        pad_id: int,
        eod_id: int,
        vocab_size: int,
        out: object,
    ) -> tuple[npt.NDArray[np.int32], int, int, npt.NDArray[np.int64], int, int]: ...

    # Tensors are passed as addresses, sizes beside them: see csrc/bind_*.cpp for the order.

    def FuseSlice(self, *arguments: int) -> object: ...

    def document_lengths(
        self, source: object, documents: Integers
    ) -> tuple[Integers, Integers, Integers, Integers, Integers]: ...

    def native_rows(self, sizes: npt.NDArray[np.int32], most: int, patch: int, fold: int) -> Integers: ...

    def check_slice(self, part: object) -> None: ...

    def fuse_forward(self, *arguments: object) -> None: ...

    def fuse_backward_rows(self, *arguments: object) -> None: ...

    def fuse_backward_weight(self, *arguments: object) -> None: ...

    def patchify(self, *arguments: object) -> None: ...

    def resize_bicubic(self, *arguments: object) -> None: ...

    def pack_best_fit(self, lengths: Integers, capacity: int) -> tuple[Integers, int]: ...

    def pack_within_budgets(
        self,
        lengths: Integers,
        patches: Integers,
        images: Integers,
        order: Integers,
        capacity: int,
        patch_capacity: int,
        image_capacity: int,
    ) -> tuple[Integers, int]: ...

    def pack_amounts(
        self, pieces: tuple[Integers, ...], entries: tuple[Integers, ...], sources: int
    ) -> tuple[Integers, Integers, Integers]: ...

    def window_rows(
        self, pieces: tuple[Integers, ...], entries: tuple[Integers, ...], order: Integers
    ) -> tuple[Integers, Integers, Integers]: ...

    def group_by_pack(self, pack: Integers, packs: int) -> tuple[Integers, Integers]: ...

    def order_in_packs(
        self, pack: Integers, document: Integers, start: Integers, packs: int
    ) -> tuple[Integers, Integers]: ...

    def fill_pack_holes(
        self,
        document: Integers,
        start: Integers,
        length: Integers,
        splittable: npt.NDArray[np.bool_],
        pack: Integers,
        packs: int,
        capacity: int,
        min_piece: int,
    ) -> tuple[Integers, Integers, Integers, Integers, int]: ...

    def balance_packs(self, costs: npt.NDArray[np.float64], ranks: int, micro_batches: int, window: int) -> Integers: ...

    def order_packs(
        self,
        amounts: Integers,
        bases: Integers,
        shares: Integers,
        behind: Integers,
        scale: npt.NDArray[np.float64],
        candidates: int,
        close_enough: float,
    ) -> tuple[Integers, Integers]: ...


@functools.cache
def native_operators() -> NativeOperators | None:
    """Return the native extension, or None where it is missing or was built from other sources.

    The first call that finds none warns (`RuntimeWarning`) with the reason and the remedy; results are the
    same either way, only slower.
    """
    try:
        module = importlib.import_module("megatron_vlm._native")
    except ImportError as error:
        _warn(str(error))
        return None
    found = getattr(module, "INTERFACE", None)
    if found != EXPECTED_INTERFACE:
        _warn(f"{module.__file__} has interface {found}, but this package needs {EXPECTED_INTERFACE}")
        return None
    return cast(NativeOperators, module)


def _warn(reason: str) -> None:
    warnings.warn(
        f"megatron_vlm runs without its native operators: {reason}. Slower numpy code serves in their place. "
        "To build them, install a C++17 compiler and run: pip install --no-build-isolation --no-deps -e . "
        "in a checkout of megatron_vlm (or `make` there)",
        RuntimeWarning,
        stacklevel=3,
    )
