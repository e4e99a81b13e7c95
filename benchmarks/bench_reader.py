"""Reading a dataset: texts at random, pictures by their number, and opening a large index.

  python benchmarks/bench_reader.py [--documents 10000000] [--reads 10000] [--pictures 2000] [--runs 11] [--json FILE]

Ways, each `--reads` texts or `--pictures` pictures a call:
  texts       2048 ids from anywhere in long documents of a plain .bin/.idx: `IndexedReader.tokens` against megatron-core's
              `IndexedDataset.get`, both of a memory map; once as they are given, once with a sum over the ids
  pictures    `IndexedReader.image_bytes` (JPEGs of 10 to 200 kB) against `pread` of the same bytes at offsets that are
              known beforehand, and against WebDataset where it is installed, which reads its tar in order
  opening     an index of `--documents` documents, and the memory that stays resident afterwards
One thread; the files are in the page cache.
"""

from __future__ import annotations

import importlib.util
import io
import os
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from measuring import measure, parser, report, table
from megatron.core.datasets.indexed_dataset import IndexedDataset

from megatron_vlm.data.indexed_format import CODE_OF_DTYPE, HEADER, MAGIC, VERSION
from megatron_vlm.data.indexed_reader import IndexedReader
from megatron_vlm.data.indexed_writer import IndexedWriter

LENGTH = 2048


def texts(folder: Path, reads: int) -> tuple[dict[str, Callable[[], object]], dict[str, Callable[[], object]]]:
    """The ways of reading texts: as given, and with a sum."""
    rng = np.random.default_rng(0)
    with IndexedWriter(folder / "text", np.uint16) as writer:
        for length in rng.integers(LENGTH, 4 * LENGTH, 4000).tolist():
            writer.add_text(rng.integers(0, 60000, length))
            writer.end_document()
    ours, theirs = IndexedReader(folder / "text"), IndexedDataset(str(folder / "text"))
    sequences = rng.integers(0, ours.sequence_count, reads).tolist()
    places = [(s, int(rng.integers(0, int(ours.sequence_lengths[s]) - LENGTH + 1))) for s in sequences]
    for sequence, offset in places[:100]:
        assert np.array_equal(ours.tokens(sequence, offset, LENGTH), theirs.get(sequence, offset, LENGTH))

    def reading(read: Callable[[int, int, int], Any]) -> Callable[[], object]:
        def call() -> None:
            for sequence, offset in places:
                read(sequence, offset, LENGTH)

        return call

    def summing(read: Callable[[int, int, int], Any]) -> Callable[[], object]:
        def call() -> None:
            for sequence, offset in places:
                read(sequence, offset, LENGTH).sum()

        return call

    reads_of = {"IndexedReader.tokens": ours.tokens, "megatron-core get": theirs.get}
    return tuple({name: way(read) for name, read in reads_of.items()} for way in (reading, summing))  # type: ignore[return-value]


def pictures(folder: Path, count: int) -> dict[str, Callable[[], object]]:
    """The ways of reading pictures."""
    rng = np.random.default_rng(1)
    encoded = [b"\xff\xd8" + rng.bytes(size) for size in rng.integers(10_000, 200_000, count).tolist()]
    with IndexedWriter(folder / "pictures", np.int32, multimodal=True) as writer:
        for picture in encoded:
            writer.add_image(picture)
            writer.add_text([1, 2, 3])
            writer.end_document()
    reader = IndexedReader(folder / "pictures")
    order = (2 * rng.permutation(count)).tolist()
    places = [reader.image_place(sequence) for sequence in order]
    descriptor = os.open(folder / "pictures.bin", os.O_RDONLY)
    assert reader.image_bytes(order[0]) == encoded[order[0] // 2]

    def ours() -> None:
        for sequence in order:
            reader.image_bytes(sequence)

    def pread() -> None:
        for start, stop in places:
            os.pread(descriptor, stop - start, start)

    ways: dict[str, Callable[[], object]] = {"IndexedReader.image_bytes": ours, "pread": pread}
    if importlib.util.find_spec("webdataset") is None:
        print("WebDataset is not installed, so it is not measured")
    else:
        ways["WebDataset, in order"] = webdataset_way(folder / "pictures.tar", encoded)
    return ways


def webdataset_way(path: Path, encoded: list[bytes]) -> Callable[[], object]:
    """All pictures of a tar, in its order, as bytes."""
    import webdataset

    with tarfile.open(path, "w") as tar:
        for number, picture in enumerate(encoded):
            header = tarfile.TarInfo(f"{number:09d}.jpg")
            header.size = len(picture)
            tar.addfile(header, io.BytesIO(picture))

    def call() -> int:
        return sum(len(sample["jpg"]) for sample in webdataset.WebDataset(str(path), shardshuffle=False))

    return call


def write_large_index(prefix: Path, documents: int) -> None:
    """An index of so many documents of one text of 2 ids each; their .bin is a hole."""
    part = 1 << 20
    with open(f"{prefix}.idx", "wb") as index:
        index.write(HEADER.pack(MAGIC, VERSION, CODE_OF_DTYPE[np.dtype("<u2")], documents, documents + 1))
        for at in range(0, documents, part):
            index.write(np.full(min(part, documents - at), 2, "<i4").tobytes())
        for at in range(0, documents, part):
            index.write((4 * np.arange(at, min(at + part, documents), dtype="<i8")).tobytes())
        for at in range(0, documents + 1, part):
            index.write(np.arange(at, min(at + part, documents + 1), dtype="<i8").tobytes())
    with open(f"{prefix}.bin", "wb") as data:
        data.truncate(4 * documents)


def resident_megabytes() -> float:
    """Of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def growth(make: Callable[[], Any]) -> float:
    """Megabytes that stay resident while what `make` gives is held."""
    before = resident_megabytes()
    held = make()
    after = resident_megabytes()
    del held
    return after - before


def main() -> None:
    arguments = parser(__doc__, runs=11)
    arguments.add_argument("--documents", type=int, default=10_000_000, help="of the large index (default: %(default)s)")
    arguments.add_argument("--reads", type=int, default=10_000, help="texts a call (default: %(default)s)")
    arguments.add_argument("--pictures", type=int, default=2000, help="pictures a call (default: %(default)s)")
    args = arguments.parse_args()
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        given, summed = texts(folder, args.reads)
        for title, ways, base in (
            (f"{args.reads} texts of {LENGTH} ids", given, "IndexedReader.tokens"),
            (f"{args.reads} texts of {LENGTH} ids, summed", summed, "IndexedReader.tokens"),
            (f"{args.pictures} pictures", pictures(folder, args.pictures), "pread"),
        ):
            results[title] = measure(ways, args.runs)
            print(f"{title}\n{table(results[title], base)}\n")
        write_large_index(folder / "large", args.documents)
        openings: dict[str, Callable[[], Any]] = {
            "IndexedReader": lambda: IndexedReader(folder / "large"),
            "megatron-core": lambda: IndexedDataset(str(folder / "large")),
        }
        title = f"opening {args.documents} documents"
        timings = measure(openings, args.runs)
        memory = {way: growth(make) for way, make in openings.items()}
        print(f"{title}\n{table(timings, 'IndexedReader')}")
        print("resident afterwards: " + ", ".join(f"{way} {size:.1f} MB" for way, size in memory.items()))
        results[title] = {"timings": timings, "resident_megabytes": memory}
    report(args, results)


if __name__ == "__main__":
    main()
