"""Slots: arrays of a micro-batch beside one another, never across a border; memory is asked for before it is written."""

from __future__ import annotations

import gc
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_vlm.config.steps import StepShape
from megatron_vlm.data.loader.slots import SharedSlots, SlotLayout, file_on_disk, slots_needed
from megatron_vlm.errors import UserError
from megatron_vlm.ops.assemble import BatchBuffers

SIZES = st.integers(1, 40)


@given(packs=SIZES, length=SIZES, size=SIZES, tokens=SIZES)
def test_no_array_of_a_slot_reaches_into_another(packs: int, length: int, size: int, tokens: int) -> None:
    layout = SlotLayout(packs, StepShape(0, length, packs, packs, size, 1, tokens))
    slot = memoryview(bytearray(layout.size))
    most = packs * (length // tokens)
    arrays = [
        *layout.buffers(slot).arrays(),
        layout.cu_seqlens(slot, packs * length + 1),
        layout.pixels(slot, most),
    ]
    assert [a.dtype for a in arrays[:7]] == [np.dtype(d) for d in BatchBuffers.dtypes().values()]
    assert arrays[-1].shape == (most, size, size, 3)
    for number, array in enumerate(arrays):
        assert array.ctypes.data % array.itemsize == 0
        array.view(np.uint8).fill(number + 1)
    for number, array in enumerate(arrays):
        assert (array.view(np.uint8) == number + 1).all(), f"array {number} was written over"
    # the spans of a job lie at the start, before anything is made: one a position at most
    assert layout.size >= 32 * packs * length


def test_more_than_there_is_room_for_is_refused() -> None:
    layout = SlotLayout(1, StepShape(0, 8, 1, 1, 4, 1, 3))
    slot = memoryview(bytearray(layout.size))
    with pytest.raises(ValueError, match="3 pictures in a micro-batch that has room for 2"):
        layout.pixels(slot, 3)
    with pytest.raises(ValueError, match="cu_seqlens of 10 numbers for 8 positions"):
        layout.cu_seqlens(slot, 10)


def test_slots_hold_the_largest_micro_batch_and_the_step_of_most() -> None:
    many, large = StepShape(0, 16, 1, 12, 8, 1, 4), StepShape(1, 64, 2, 6, 32, 1, 4)
    count, size = slots_needed([many, large], ranks=3, steps=5)
    assert count == 4 * 5
    assert size == SlotLayout(2, large).size
    assert slots_needed([], ranks=1, steps=2)[0] == 2


def test_two_mappings_of_one_file_see_the_same(tmp_path: Path) -> None:
    first = SharedSlots(3, 4096)
    second = SharedSlots(3, 4096, os.dup(first.descriptor))
    np.frombuffer(first.slot(2), np.uint8)[:] = 7
    assert (np.frombuffer(second.slot(2), np.uint8) == 7).all()
    assert (np.frombuffer(second.slot(1), np.uint8) == 0).all()
    with pytest.raises(ValueError, match="slot 3 of 3"):
        first.slot(3)


def test_the_memory_goes_with_the_last_who_holds_it() -> None:
    def shared() -> int:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("RssShmem:"):
                return int(line.split()[1])
        raise AssertionError("the system does not say")

    before = shared()
    slots = SharedSlots(4, 8 << 20)
    assert shared() - before < 1024, "nothing is taken before it is written"
    array = np.frombuffer(slots.slot(1), np.uint8)
    array[:] = 1
    assert shared() - before > 7 * 1024
    slots.close()
    assert array.all()
    del array, slots
    gc.collect()
    assert shared() - before < 1024


def test_a_file_that_does_not_fit_on_the_disk_is_refused_with_its_size() -> None:
    files = set(os.listdir(tempfile.gettempdir()))
    with pytest.raises(UserError, match=r"the loader needs lots: .*; lower it, or set TMPDIR to a larger place"):
        file_on_disk(1 << 55, "the loader needs lots", "lower it")
    assert not [name for name in set(os.listdir(tempfile.gettempdir())) - files if name.startswith("megatron_vlm-loader")]


def test_a_file_on_disk_serves_as_well() -> None:
    descriptor = file_on_disk(8192, "", "")
    slots = SharedSlots(2, 4096, descriptor)
    np.frombuffer(slots.slot(1), np.uint8)[:] = 3
    assert os.pread(descriptor, 4096, 4096) == b"\3" * 4096
    slots.close()
