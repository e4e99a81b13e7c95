"""Assembling packs: the native operators against numpy, a memcpy of the outputs, and megatron-core's GPTDataset.

  python benchmarks/bench_assemble.py [--packs 16] [--sequence-length 2048] [--runs 21] [--json FILE]

Prose has lognormal lengths (median 150 tokens); captioned pictures are 64 placeholders and 10 to 60 words each. Ways:
  spans of datasets       `assemble_spans`: ids are read where Megatron's .bin is mapped, into buffers that are used again
  segments in memory      `assemble_packs`: ids are arrays, outputs are allocated
  numpy reference         the same in numpy
  megatron-core           prose only: as many samples of its GPTDataset over the same dataset, which have no pictures, cut
                          documents at sample borders, and let documents see each other
The last line of each is CPU time a pack, with nothing else between the calls. A memcpy of the output arrays is the least
that any way of making them could cost. One thread.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import Timing, copy_bytes, measure, parser, report, table

from megatron_vlm.data.indexed_reader import IndexedReader
from megatron_vlm.data.indexed_writer import IndexedWriter
from megatron_vlm.ops.assemble import (
    MODALITY_CAPTION,
    MODALITY_TEXT,
    BatchBuffers,
    Segment,
    assemble_packs,
    assemble_packs_reference,
)
from megatron_vlm.ops.assemble_spans import IndexedSource, assemble_spans
from megatron_vlm.ops.native import native_operators

IMAGE, PAD = 1, 2
PICTURE = 64


def prose(rng: np.random.Generator, space: int) -> Segment:
    length = min(space, int(rng.lognormal(5, 1)) + 1)
    return Segment(rng.integers(3, 50000, length + 1).astype(np.int32), MODALITY_TEXT)


def caption(rng: np.random.Generator, space: int) -> Segment:
    length = min(space, PICTURE + int(rng.integers(10, 60)))
    ids = rng.integers(3, 50000, length + 1).astype(np.int32)
    ids[:PICTURE] = IMAGE
    return Segment(ids, MODALITY_CAPTION)


def make_packs(make: Callable[[np.random.Generator, int], Segment], count: int, length: int) -> list[list[Segment]]:
    rng = np.random.default_rng(0)
    packs = []
    for _ in range(count):
        space, segments = length, []
        while space > 2:
            segments.append(make(rng, space))
            space -= len(segments[-1].ids) - 1
        packs.append(segments)
    return packs


def write(packs: list[list[Segment]], prefix: Path) -> list[list[int]]:
    """The segments as documents of a dataset, and the numbers of each pack's."""
    numbers: list[list[int]] = []
    count = 0
    with IndexedWriter(prefix, np.uint16, multimodal=any(IMAGE in segment.ids for pack in packs for segment in pack)) as out:
        for pack in packs:
            numbers.append(list(range(count, count + len(pack))))
            count += len(pack)
            for segment in pack:
                ids = segment.ids
                if ids[0] == IMAGE:
                    out.add_image(b"nobody decodes this")
                    ids = ids[PICTURE:]
                out.add_text(ids.astype(np.uint16))
                out.end_document()
    return numbers


def spans_way(packs: list[list[Segment]], prefix: Path, length: int) -> Callable[[], Any]:
    native = native_operators()
    assert native is not None
    numbers = write(packs, prefix)
    reader = IndexedReader(prefix)
    index = (reader.sequence_lengths, reader.sequence_pointers, reader.document_indices, reader.modes)
    source = IndexedSource(native, reader.data, reader.dtype, *index, PICTURE)
    rows = [
        (0, number, 0, len(segment.ids) - 1)
        for pack, mine in zip(packs, numbers, strict=True)
        for segment, number in zip(pack, mine, strict=True)
    ]
    spans, per_pack = np.array(rows, np.int64), np.array([len(pack) for pack in packs], np.int64)
    buffers = BatchBuffers.allocate(len(packs) * length)
    ids = {"image_token_id": IMAGE, "pad_id": PAD, "eod_id": 0, "vocab_size": 65536}

    def call() -> Any:
        return assemble_spans(native, [source], spans, per_pack, sequence_length=length, buffers=buffers, **ids)

    return call


def megatron_way(prefix: Path, length: int, count: int) -> Callable[[], object]:
    """`count` samples of a GPTDataset over the dataset at `prefix`, in its own order."""
    import torch.distributed as dist
    from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig

    from megatron_vlm.parallel.host import install

    install()
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)

    class Tokenizer:
        eod, pad, unique_identifiers, vocab_size = 0, PAD, {"class": "none"}, 65536

    config = GPTDatasetConfig(
        random_seed=1,
        sequence_length=length,
        blend=([str(prefix)], None),
        split="1,0,0",
        path_to_cache=str(prefix.parent / "cache"),
        tokenizer=Tokenizer(),
        reset_position_ids=True,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
    )
    with contextlib.redirect_stdout(io.StringIO()):
        dataset = BlendedMegatronDatasetBuilder(GPTDataset, [count, 0, 0], lambda: True, config).build()[0]
    return lambda: [dataset[i] for i in range(count)]


def main() -> None:
    arguments = parser(__doc__, runs=21)
    arguments.add_argument("--packs", type=int, default=16, help="packs of a micro-batch (default: %(default)s)")
    arguments.add_argument("--sequence-length", type=int, default=2048, help="positions of a pack (default: %(default)s)")
    args = arguments.parse_args()
    if native_operators() is None:
        raise SystemExit("there are no native operators to measure: build them with `make`")
    torch.set_num_threads(1)
    results = {}
    for name, make in (("prose", prose), ("captioned pictures", caption)):
        packs = make_packs(make, args.packs, args.sequence_length)
        with tempfile.TemporaryDirectory() as folder:
            timings, megabytes, alone = compare(packs, args.sequence_length, args.runs, Path(folder))
        documents = sum(map(len, packs))
        print(f"{name}: {args.packs} packs of {args.sequence_length}, {documents} documents, {megabytes:.2f} MB out")
        print(table(timings, "spans of datasets"))
        print(f"spans alone: {alone:.1f} us of CPU a pack of {documents / args.packs:.0f} documents\n")
        results[name] = {"timings": timings, "megabytes": megabytes, "alone_us_a_pack": alone}
    report(args, results)


def microseconds(call: Callable[[], object], packs: int, calls: int = 500) -> float:
    """CPU time of a pack, call after call: caches hold the buffers, as a loader's do."""
    for _ in range(calls // 10):
        call()
    begun = time.process_time()
    for _ in range(calls):
        call()
    return (time.process_time() - begun) / calls / packs * 1e6


def compare(packs: list[list[Segment]], length: int, runs: int, folder: Path) -> tuple[dict[str, Timing], float, float]:
    """Timings, the size of the outputs in MB, and `microseconds` of the spans."""
    sizes = {"sequence_length": length, "image_token_id": IMAGE, "pad_id": PAD}
    expected = assemble_packs_reference(packs, **sizes)
    spans = spans_way(packs, folder / "dataset", length)
    made, _, fault = spans()
    assert fault is None
    for name in BatchBuffers.dtypes():
        assert np.array_equal(getattr(made, name), getattr(expected, name)), f"another {name} than the reference's"
    outputs = [torch.from_numpy(getattr(expected, name)) for name in BatchBuffers.dtypes()]
    copies = [copy_bytes(torch.empty_like(output), output) for output in outputs]
    ways: dict[str, Callable[[], object]] = {
        "memcpy of the outputs": lambda: [copy() for copy in copies],
        "spans of datasets": spans,
        "segments in memory": lambda: assemble_packs(packs, **sizes),
        "numpy reference": lambda: assemble_packs_reference(packs, **sizes),
    }
    if packs[0][0].ids[0] != IMAGE:
        ways["megatron-core GPTDataset"] = megatron_way(folder / "dataset", length, len(packs))
    megabytes = sum(output.nbytes for output in outputs) / 1e6
    return measure(ways, runs), megabytes, microseconds(spans, len(packs))


if __name__ == "__main__":
    main()
