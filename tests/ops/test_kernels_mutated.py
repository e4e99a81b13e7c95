"""Plausible mistakes in the kernels are seen: each is put into the source, and a comparison or a sanitizer has to tell."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.ops.emulation import SANITIZERS, SOURCES, EmulatedKernels, compile_for_cpu, emulated_kernels, needs_compiler
from tests.ops.kernel_cases import (
    Fusion,
    Patching,
    check_fusion,
    check_patchify,
    run_backward_rows,
    run_forward,
    run_patchify,
)

pytestmark = needs_compiler

#: name: (file, what stands there, what is put in its place)
SEEN_BY_COMPARISON = {
    "rows are not bounded": ("fuse.cuh", "index >= 0 && index < row_count", "index >= 0"),
    "tokens are not bounded": ("fuse.cuh", "token < 0 || token >= vocab_size", "token < 0"),
    "another shard's words are taken": ("fuse.cuh", "local >= 0 && local < vocab_rows", "local < vocab_rows"),
    "another shard's words are read past the end": ("fuse.cuh", "local >= 0 && local < vocab_rows", "local >= 0"),
    "rows are there on every rank": ("fuse.cuh", "rows_here ? rows + ", "true ? rows + "),
    "batch and position are swapped": ("fuse.cuh", "(p * batch + b) * units", "(b * positions + p) * units"),
    "the slice begins at zero": ("fuse.cuh", "b * sequence + first_position + position", "b * sequence + position"),
    "a row's end is not heeded": ("fuse.cuh", "if (i < units) store(to + i, part[k])", "store(to + i, part[k])"),
    "only one step along a row": ("fuse.cuh", "start += int64_t{kAhead} * blockDim.x", "start += units"),
    "rows are not strided over the grid": ("fuse.cuh", "p += step", "p += positions"),
    "a duplicate passes": (
        "fuse.cuh",
        "position_of_row + row, p * batch + b) != -1",
        "position_of_row + row, p * batch + b) < -1",
    ),
    "the last of two positions wins": ("portable.h", "static_cast<uint64_t>(value) < static_cast", "-1ull > static_cast"),
    "a negative row is written": ("fuse.cuh", "if (row < 0 || row >= row_count)", "if (row >= row_count)"),
    "the workspace keeps what was in it": ("fuse.cu", "position_of_row, 0xff", "position_of_row, 0x7f"),
    "the sum starts late": ("fuse.cuh", "for (int64_t start = begin;", "for (int64_t start = begin + 1;"),
    "the sum ends early": ("fuse.cuh", "start < end; start += kAheadInSums", "start + 1 < end; start += kAheadInSums"),
    "places are not moved on": ("fuse.cuh", "load(places + start + kAheadInSums + k)", "load(places + start + k)"),
    "the search is one off": ("fuse.cuh", "load(words + middle) < word", "load(words + middle) <= word"),
    "a run of rows passes the end": ("fuse.cuh", "w < row + kRowsPerSearch && w < vocab_rows", "w < row + kRowsPerSearch"),
    "columns are not strided": ("fuse.cuh", "u += unit_step", "u += units"),
    "halves are cut, not rounded": ("numbers.h", "(bits + 0x7fffu + (bits >> 16 & 1u)) >> 16", "bits >> 16"),
    "halfway is rounded up": ("numbers.h", "0xfffu + (magnitude >> 13 & 1u)", "0x1000u"),
    "a multiplication in place of the division": ("patchify.cuh", "__fdiv_rn(centred, ", "centred * __fdiv_rn(1.0f, "),
    "the results are not waited for": ("patchify.cuh", "__syncthreads();  // results and found are whole", ""),
    "the next patches are not waited for": ("patchify.cuh", "__syncthreads();  // found is read no more", ""),
    "a barrier in half of the threads": (
        "patchify.cuh",
        "__syncthreads();  // found is read no more",
        "if (thread % 2) __syncthreads();",
    ),
    "a picture begins one patch late": ("patchify.cuh", "+ 3) <= patch", "+ 3) < patch"),
    "blocks go down, not across": ("patchify.cuh", "block / blocks_in_row * group", "block % blocks_in_row * group"),
    "inside a block down, not across": ("patchify.cuh", "group + in_block % group", "group + in_block / group"),
    "channels lie apart": ("patchify.cuh", "3 * x + channel", "x + channel"),
    "a row of pixels is short": ("patchify.cuh", "row_bytes = 3 * picture.width", "row_bytes = 3 * picture.width - 3"),
    "more patches are written than there are": ("patchify.cuh", "left < kPatchesAtOnce ?", "left < 0 ?"),
    "a picture passes the pixels": ("patchify.cuh", "(all.pixel_bytes - offset) / 3 / width", "all.pixel_bytes / width"),
    "a gap in the table passes": ("patchify.cuh", "picture.first + picture.patches() == next", "next >= 0"),
    "the quotient is rounded down": ("patchify.cuh", "+ d - 1) / d", ") / d"),
    "units are wider than a row's alignment": ("patchify.cu", "in_16 = moves_in(16, row_bytes, out)", "in_16 = true"),
}
#: reads that leave no trace in a result
SEEN_BY_SANITIZER = {
    "a row is read past its end": ("fuse.cuh", "if (i < units) part[k] = load(from + i)", "part[k] = load(from + i)"),
    "words are read past their end": ("fuse.cuh", "begin < words_count && load", "load"),
    "places are read past their end": ("fuse.cuh", "if (start + kAheadInSums + k < end) place", "place"),
    "a patch of no picture is read": ("patchify.cuh", "if (in_picture >= picture.patches())", "if (false)"),
    "the table is read past its end": ("patchify.cuh", "number + 1 == all.count", "number == all.count"),
}

DRIVER = Path(__file__).with_name("kernels_driver.cpp")


def mutate(folder: Path, file: str, old: str, new: str) -> Path:
    target = folder / "cuda"
    shutil.copytree(SOURCES, target)
    text = (target / file).read_text(encoding="utf-8")
    assert text.count(old) == 1, f"{old!r} stands {text.count(old)} times in {file}"
    (target / file).write_text(text.replace(old, new), encoding="utf-8")
    return target


def compare_all(kernels: EmulatedKernels) -> None:
    """Comparisons that between them reach every line; without hypothesis, so that a mutant always meets the same."""
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for hidden in (8, 33, 96):
            base = Fusion(hidden=hidden, dtype=dtype, seed=hidden)
            for shape in (((0, 0), (0, 0), False), ((2, 1), (3, 2), True), ((1, 2), (5, 1), False)):
                with kernels.shaped(*shape):
                    check_fusion(kernels, base)
                    check_fusion(kernels, replace(base, rows_here=False, shard=0))
                    check_fusion(kernels, replace(base, shards=1, shard=0, images=0.1, sequence=40, positions=36))
    for seed in range(20):
        check_fusion(kernels, Fusion(2, 24, 64, 0, 24, 3, 1, 0, images=0.0, dtype=torch.float16, seed=seed))
    for sizes, patch_size, group in (
        (((28, 42), (14, 14), (42, 28)), 14, 1),
        (((12, 24), (24, 36), (12, 12)), 3, 2),
        (((9, 18), (36, 27)), 3, 3),
        (((8, 8), (16, 12)), 2, 1),
    ):
        for dtype in (torch.float32, torch.bfloat16):
            for shape in (((0, 1), (0, 1), False), ((1, 1), (31, 1), False), ((1, 1), (7, 1), True)):
                with kernels.shaped(*shape):
                    check_patchify(kernels, Patching(sizes, patch_size, group, dtype=dtype))
    check_patchify(kernels, Patching(((16, 16),), 16, shift=1))
    check_faults(kernels)


def check_faults(kernels: EmulatedKernels) -> None:
    """Each fault is named, with what is out of range far enough to be seen and near enough to be memory."""
    case = Fusion(1, 4, 8, 0, 4, 6, 2, 1)
    words, no_rows = torch.tensor([[0, 5, 3, 1]]), torch.full((1, 4), -1, dtype=torch.int32)
    assert run_forward(kernels, case, torch.tensor([[0, 6, 3, 1]]), no_rows, 2)[1] == 1
    for bad in (2, -2):
        row_index = torch.tensor([[0, bad, -1, 1]], dtype=torch.int32)
        assert run_forward(kernels, case, words, row_index, 2)[1] == 2
        assert run_backward_rows(kernels, case, row_index, 2)[1] == 2
    twice = torch.tensor([[1, 0, 1, -1]], dtype=torch.int32)
    of_rows, faults = run_backward_rows(kernels, case, twice, 2)
    assert faults == 4
    assert torch.equal(of_rows[1].nan_to_num(), case.filled(4, 1, 8, salt=3)[0, 0].nan_to_num())
    patching = Patching(patch_size=2)
    past_the_pixels, overlapping = [[0, 4, 4, 0], [48, 4, 4, 4]], [[0, 4, 4, 0], [48, 2, 2, 3]]
    gap = [[0, 2, 4, 0], [24, 2, 2, 3]]
    for table, patches in ((past_the_pixels, 8), (overlapping, 4), (gap, 4)):
        assert run_patchify(kernels, patching, torch.tensor(table), patches, patching.pixels(60))[2] == 8


def _compare_in_child(path: Path) -> None:
    # A crash is an answer, and so is any error: a mutant that writes where it pleases may spoil Python's own memory.
    faulthandler.disable()
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    compare_all(EmulatedKernels(path))


def test_the_sources_as_they_are_pass() -> None:
    compare_all(emulated_kernels())


@pytest.mark.slow
@pytest.mark.parametrize("name", SEEN_BY_COMPARISON)
def test_a_comparison_sees(name: str, tmp_path: Path) -> None:
    sources = mutate(tmp_path, *SEEN_BY_COMPARISON[name])
    library = compile_for_cpu(tmp_path / "kernels.so", ["-O0", "-shared", "-fPIC", "-Wno-unused"], sources)
    child = multiprocessing.get_context("fork").Process(target=_compare_in_child, args=(library,))
    child.start()
    child.join(60)
    if child.is_alive():
        child.kill()
        child.join()
    assert child.exitcode != 0, "the mutant passed"


@pytest.mark.sanitize
@pytest.mark.parametrize("name", SEEN_BY_SANITIZER)
def test_a_sanitizer_sees(name: str, tmp_path: Path) -> None:
    sources = mutate(tmp_path, *SEEN_BY_SANITIZER[name])
    driver = compile_for_cpu(tmp_path / "driver", [*SANITIZERS, "-Wno-unused"], sources, driver=DRIVER)
    done = subprocess.run([driver], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "AddressSanitizer" in done.stderr or "runtime error" in done.stderr
