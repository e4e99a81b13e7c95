"""Other projects' loaders over the data of bench_loader.py, each as its own documentation has it; run by that file.

  python benchmarks/loader_peers.py FOLDER

FOLDER holds `shards/*.tar` (NAME.jpg, NAME.txt). Prints one JSON line of the ways that can be had here and why others
cannot; then for each line read (`WAY SAMPLES`) the seconds in which that many samples came after the first batch.
"""

from __future__ import annotations

import glob
import json
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

BATCH = 64
Batches = Callable[[], Iterator[int]]  # of the numbers of samples in batches


def _stack(samples: list[dict[str, Any]]) -> Any:
    import numpy as np
    import torch

    return torch.from_numpy(np.stack([sample["jpg"] for sample in samples])), [sample["txt"] for sample in samples]


def _webdataset(folder: Path) -> dict[str, Batches]:
    import torch
    import webdataset

    def simplejpeg_handler(key: str, data: bytes) -> Any:
        import simplejpeg

        return simplejpeg.decode_jpeg(data) if key.endswith("jpg") else None

    def way(decode: Any, workers: int) -> Batches:
        def batches() -> Iterator[int]:
            dataset = webdataset.WebDataset(sorted(glob.glob(f"{folder}/shards/*.tar")), shardshuffle=False).repeat()
            if decode is not None:
                dataset = dataset.decode(decode)
            if not workers:  # nothing is collated, which is the quickest
                return (1 for _ in dataset)
            grouped = dataset.batched(BATCH, collation_fn=_stack if decode is not None else None)
            loader = torch.utils.data.DataLoader(grouped, batch_size=None, num_workers=workers, prefetch_factor=4)
            return (BATCH for _ in loader)

        return batches

    ways = {}
    for workers in (0, 2):
        ways[f"raw: WebDataset, {workers} workers"] = way(None, workers)
        ways[f"decoded: WebDataset, {workers} workers"] = way("rgb8", workers)
        ways[f"decoded: WebDataset given simplejpeg, {workers} workers"] = way(simplejpeg_handler, workers)
    return ways


def _streaming(folder: Path) -> dict[str, Batches]:
    import numpy as np
    import torch
    from streaming import MDSWriter, StreamingDataset
    from streaming.base.util import clean_stale_shared_memory

    clean_stale_shared_memory()
    for encoding in ("bytes", "jpeg_array"):
        with MDSWriter(out=f"{folder}/{encoding}", columns={"jpg": "bytes", "txt": "str"}, size_limit=1 << 28) as writer:
            for jpg, txt in _samples(folder):
                writer.write({"jpg": jpg, "txt": txt})

    class Decoded(StreamingDataset):  # as its own image datasets do: bytes to Pillow to an array
        def __getitem__(self, at: Any) -> Any:
            import io

            from PIL import Image

            sample = super().__getitem__(at)
            return {**sample, "jpg": np.asarray(Image.open(io.BytesIO(sample["jpg"])).convert("RGB"))}

    def way(kind: type[StreamingDataset], encoding: str, workers: int) -> Batches:
        def batches() -> Iterator[int]:
            clean_stale_shared_memory()
            dataset = kind(local=f"{folder}/{encoding}", shuffle=False, batch_size=BATCH)
            if not workers:
                return (1 for _ in dataset)
            collate = _stack if kind is Decoded else list
            loader = torch.utils.data.DataLoader(
                dataset, batch_size=BATCH, num_workers=workers, prefetch_factor=4, collate_fn=collate
            )
            return (BATCH for _ in loader)

        return batches

    ways = {}
    for workers in (0, 2):
        ways[f"raw: MosaicML streaming, {workers} workers"] = way(StreamingDataset, "bytes", workers)
        ways[f"decoded: MosaicML streaming, {workers} workers"] = way(Decoded, "jpeg_array", workers)
    return ways


def _energon(folder: Path) -> dict[str, Batches]:
    from megatron.energon import DefaultTaskEncoder, WorkerConfig, get_loader, get_train_dataset
    from megatron.energon.flavors import BaseWebdatasetFactory
    from megatron.energon.flavors.webdataset import SampleDecoder

    shards = Path(folder, "shards")
    names = [path.name for path in sorted(shards.glob("*.tar"))]
    BaseWebdatasetFactory.prepare_dataset(shards, names, split_parts_ratio=[("train", 1.0)], workers=1)
    (shards / ".nv-meta" / "dataset.yaml").write_text(
        "__module__: megatron.energon\n__class__: CaptioningWebdataset\nfield_map: {image: jpg, caption: txt}\n"
    )

    class Encoder(DefaultTaskEncoder):
        def batch(self, samples: Any) -> Any:  # stacked, nothing else
            import torch

            pictures = [torch.as_tensor(sample.image) if decoded else sample.image for sample in samples]
            return torch.stack(pictures) if decoded else pictures, [sample.caption for sample in samples]

        def encode_batch(self, batch: Any) -> Any:
            return batch

    decoded = False

    def way(picture: bool, workers: int) -> Batches:
        def batches() -> Iterator[int]:
            nonlocal decoded
            decoded = picture
            encoder = Encoder()
            encoder.decoder = SampleDecoder(image_decode="rgb8") if picture else None
            config = WorkerConfig(rank=0, world_size=1, num_workers=workers)
            dataset = get_train_dataset(
                shards,
                batch_size=BATCH,
                shuffle_buffer_size=None,
                max_samples_per_sequence=None,
                worker_config=config,
                task_encoder=encoder,
            )
            return (BATCH for _ in get_loader(dataset, prefetch_factor=4))

        return batches

    return {
        f"{'decoded' if picture else 'raw'}: megatron-energon, {workers} workers": way(picture, workers)
        for workers in (0, 2)
        for picture in (False, True)
    }


def _samples(folder: Path) -> Iterator[tuple[bytes, str]]:
    for path in sorted(glob.glob(f"{folder}/shards/*.tar")):
        with tarfile.open(path) as tar:
            read = [tar.extractfile(member).read() for member in tar]  # type: ignore[union-attr]
        yield from zip(read[::2], (text.decode() for text in read[1::2]), strict=True)


def seconds_of(batches: Batches, samples: int) -> float:
    """From the first batch on; what a loader has made ahead by then is little against `samples`."""
    iterator = batches()
    next(iterator)
    begun, seen = time.perf_counter(), 0
    while seen < samples:
        size = next(iterator, None)
        if size is None:  # an epoch's end
            iterator = batches()
        else:
            seen += size
    return (time.perf_counter() - begun) * samples / seen


def main() -> None:
    import torch

    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    out, sys.stdout = sys.stdout, sys.stderr  # what libraries print goes elsewhere
    ways: dict[str, Batches] = {}
    absent: dict[str, str] = {}
    for name, make in {"WebDataset": _webdataset, "MosaicML streaming": _streaming, "megatron-energon": _energon}.items():
        try:
            ways.update(make(folder))
        except Exception as error:  # a peer that is not there, or not in a version that this knows
            absent[name] = f"{type(error).__name__}: {error}"
    print(json.dumps({"ways": list(ways), "absent": absent}), file=out, flush=True)
    for line in sys.stdin:
        name, samples = line.rstrip("\n").rsplit(" ", 1)
        try:
            answer: dict[str, Any] = {"seconds": seconds_of(ways[name], int(samples))}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {str(error).splitlines()[-1]}"}
        print(json.dumps(answer), file=out, flush=True)


if __name__ == "__main__":
    main()
