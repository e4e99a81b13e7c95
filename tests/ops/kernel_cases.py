"""Inputs for the CUDA operators, and their comparison with the references to the bit, on the CPU or on a device."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from megatron_vlm.ops.dtypes import DTYPE_CODES
from megatron_vlm.ops.fuse_reference import fuse_embeddings_backward_reference, fuse_embeddings_reference
from megatron_vlm.ops.kernels import Kernels
from megatron_vlm.ops.patchify_reference import patchify_reference

TYPES = tuple(DTYPE_CODES)
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
GUARD = 64


@dataclass
class Guarded:
    """A tensor with known bytes before and after it, `shift` elements off the alignment that an allocation has."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: str = "cpu"
    shift: int = 0
    memory: Tensor = field(init=False)
    tensor: Tensor = field(init=False)

    def __post_init__(self) -> None:
        size = torch.empty((), dtype=self.dtype).element_size()
        count = torch.Size(self.shape).numel() * size
        begin = GUARD + self.shift * size
        self.memory = torch.full((begin + count + GUARD + 16,), 0xAB, dtype=torch.uint8, device=self.device)
        self._inside = slice(begin, begin + count)
        self.tensor = self.memory[self._inside].view(self.dtype).view(self.shape)

    def check(self) -> None:
        outside = self.memory.clone()
        outside[self._inside] = 0xAB
        assert (outside == 0xAB).all(), "written beside the output"


def same(got: Tensor, expected: Tensor) -> bool:
    """The same bits; any NaN equals any other, since its payload is not part of what is promised."""
    assert got.shape == expected.shape
    assert got.dtype == expected.dtype
    if got.is_floating_point():
        kind = {2: torch.int16, 4: torch.int32, 8: torch.int64}[got.element_size()]
        nan = got.isnan() & expected.isnan()
        got, expected = (x.contiguous().view(kind).masked_fill(nan, 0) for x in (got, expected))
    return torch.equal(got, expected)


def numbers(shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Random numbers of very different sizes, so that a sum depends on its order; some are zeros of either sign, subnormal,
    infinite or not numbers."""
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    x = x * 2.0 ** torch.randint(-12, 13, shape, generator=generator)
    special = torch.tensor([0.0, -0.0, 1e-7, -6e-8, 1e-42, 65519.0, 65520.0, float("inf"), -float("inf"), float("nan")])
    chosen = special[torch.randint(0, len(special), shape, generator=generator)].double()
    return torch.where(torch.rand(shape, generator=generator) < 0.03, chosen, x).to(dtype)


@dataclass(frozen=True)
class Fusion:
    """Sizes of a fusion; what is in it follows from `seed`."""

    batch: int = 2
    sequence: int = 7
    hidden: int = 48
    first_position: int = 2
    positions: int = 4
    vocab_size: int = 12
    shards: int = 2
    shard: int = 1
    images: float = 0.4  # share of positions that name an image row
    spare_rows: int = 2  # image rows that no position names
    shift: int = 0
    dtype: torch.dtype = torch.float32
    rows_here: bool = True
    seed: int = 0
    device: str = "cpu"

    @property
    def vocab_rows(self) -> int:
        return self.vocab_size // self.shards

    @property
    def vocab_start(self) -> int:
        return self.shard * self.vocab_rows

    def generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed)

    def indices(self) -> tuple[Tensor, Tensor, int]:
        """tokens `[b, s]`, row_index `[b, s]` and the number of image rows. A token under an image row is no word."""
        g = self.generator()
        shape = (self.batch, self.sequence)
        # Squared: few words come often, as in texts.
        tokens = (torch.rand(shape, generator=g) ** 2 * self.vocab_size).long()
        is_row = torch.rand(shape, generator=g) < self.images
        named = int(is_row.sum())
        row_index = torch.full(shape, -1, dtype=torch.int32)
        row_index[is_row] = torch.randperm(named + self.spare_rows, generator=g)[:named].int()
        return tokens.masked_fill(is_row, 1 << 40), row_index, named + self.spare_rows

    def buffer(self, *shape: int) -> Guarded:
        return Guarded(shape, self.dtype, self.device, self.shift)

    def filled(self, *shape: int, salt: int) -> Tensor:
        """Random numbers in a tensor that is as aligned as this case asks for."""
        made = self.buffer(*shape).tensor
        return made.copy_(numbers(shape, self.dtype, torch.Generator().manual_seed(self.seed + salt)))


def run_forward(kernels: Kernels, case: Fusion, tokens: Tensor, row_index: Tensor, row_count: int) -> tuple[Tensor, int]:
    """The output and the fault bits, from the kernel."""
    out = case.buffer(case.positions, case.batch, case.hidden)
    fault = Guarded((1,), torch.int32, case.device)
    fault.tensor.zero_()
    kernels.fuse_forward(
        out.tensor,
        tokens.to(case.device),
        row_index.to(case.device),
        case.filled(case.vocab_rows, case.hidden, salt=1),
        case.filled(row_count, case.hidden, salt=2),
        first_position=case.first_position,
        vocab_start=case.vocab_start,
        vocab_size=case.vocab_size,
        rows_here=case.rows_here,
        fault=fault.tensor,
        stream=current_stream(case.device),
    )
    out.check()
    fault.check()
    return out.tensor, int(fault.tensor)


def run_backward_rows(kernels: Kernels, case: Fusion, row_index: Tensor, row_count: int) -> tuple[Tensor, int]:
    """The gradient of the rows and the fault bits, from the kernel."""
    out = case.buffer(row_count, case.hidden)
    workspace = Guarded((row_count,), torch.int64, case.device)
    fault = torch.zeros(1, dtype=torch.int32, device=case.device)
    kernels.fuse_backward_rows(
        out.tensor,
        workspace.tensor,
        case.filled(case.positions, case.batch, case.hidden, salt=3),
        row_index.to(case.device),
        first_position=case.first_position,
        fault=fault,
        stream=current_stream(case.device),
    )
    out.check()
    workspace.check()
    return out.tensor, int(fault)


def run_backward_weight(kernels: Kernels, case: Fusion, tokens: Tensor, row_index: Tensor) -> Tensor:
    """The gradient of the weight, from the kernel."""
    out = case.buffer(case.vocab_rows, case.hidden)
    cut = slice(case.first_position, case.first_position + case.positions)
    words = tokens[:, cut].masked_fill(row_index[:, cut] >= 0, -1) - case.vocab_start
    words, places = torch.sort(words.transpose(0, 1).reshape(-1), stable=True)
    kernels.fuse_backward_weight(
        out.tensor,
        case.filled(case.positions, case.batch, case.hidden, salt=3),
        words.to(case.device),
        places.to(case.device),
        stream=current_stream(case.device),
    )
    out.check()
    return out.tensor


def check_fusion(kernels: Kernels, case: Fusion) -> None:
    """Forward and both gradients against the references."""
    tokens, row_index, row_count = case.indices()
    got, faults = run_forward(kernels, case, tokens, row_index, row_count)
    weight, rows = case.filled(case.vocab_rows, case.hidden, salt=1), case.filled(row_count, case.hidden, salt=2)
    on = replace(case, device="cpu")
    expected = fuse_embeddings_reference(
        tokens,
        weight.cpu(),
        rows.cpu(),
        row_index,
        on.vocab_start,
        on.vocab_size,
        on.first_position,
        on.positions,
        on.rows_here,
    )
    assert faults == 0
    assert same(got.cpu(), expected)
    of_rows, faults = run_backward_rows(kernels, case, row_index, row_count)
    of_weight = run_backward_weight(kernels, case, tokens, row_index)
    gradient = case.filled(case.positions, case.batch, case.hidden, salt=3).cpu()
    expected_weight, expected_rows = fuse_embeddings_backward_reference(
        gradient, tokens, row_index, on.vocab_rows, row_count, on.vocab_start, on.first_position
    )
    assert faults == 0
    assert same(of_rows.cpu(), expected_rows)
    assert same(of_weight.cpu(), expected_weight)


@dataclass(frozen=True)
class Patching:
    """Pictures of these sizes, in pixels (height, width)."""

    sizes: tuple[tuple[int, int], ...] = ((28, 42),)
    patch_size: int = 14
    group: int = 1
    gap: int = 0  # bytes between two pictures
    shift: int = 0
    dtype: torch.dtype = torch.float32
    seed: int = 0
    device: str = "cpu"

    def table(self) -> tuple[Tensor, int, int]:
        """pictures `[n, 4]`, the number of patches and of bytes."""
        lines, offset, first = [], self.gap, 0
        for height, width in self.sizes:
            lines.append([offset, height, width, first])
            offset += 3 * height * width + self.gap
            first += (height // self.patch_size) * (width // self.patch_size)
        return torch.tensor(lines, dtype=torch.int64).view(-1, 4), first, offset - self.gap

    def pixels(self, count: int) -> Tensor:
        return torch.randint(0, 256, (count,), generator=torch.Generator().manual_seed(self.seed), dtype=torch.uint8)


def run_patchify(
    kernels: Kernels, case: Patching, table: Tensor, patches: int, pixels: Tensor
) -> tuple[Tensor, Tensor, int]:
    """Patch rows, coordinates and the fault bits, from the kernel."""
    out = Guarded((patches, 3 * case.patch_size**2), case.dtype, case.device, case.shift)
    coordinates = Guarded((patches, 2), torch.int32, case.device)
    fault = torch.zeros(1, dtype=torch.int32, device=case.device)
    kernels.patchify(
        out.tensor,
        coordinates.tensor,
        pixels.to(case.device),
        table.to(case.device),
        patch_size=case.patch_size,
        group=case.group,
        mean_255=(torch.tensor(MEAN) * 255.0).tolist(),
        std_255=(torch.tensor(STD) * 255.0).tolist(),
        fault=fault,
        stream=current_stream(case.device),
    )
    out.check()
    coordinates.check()
    return out.tensor, coordinates.tensor, int(fault)


def check_patchify(kernels: Kernels, case: Patching) -> None:
    table, patches, count = case.table()
    pixels = case.pixels(count)
    got, coordinates, faults = run_patchify(kernels, case, table, patches, pixels)
    side = case.patch_size
    full = table[(table[:, 1] >= side) & (table[:, 2] >= side)]  # the reference takes no picture without patches
    expected, expected_coordinates = patchify_reference(
        pixels, full, patches, case.patch_size, case.group, MEAN, STD, case.dtype
    )
    assert faults == 0
    assert same(got.cpu(), expected)
    assert torch.equal(coordinates.cpu(), expected_coordinates)


def current_stream(device: str) -> int:
    return torch.cuda.current_stream(device).cuda_stream if device != "cpu" else 0
