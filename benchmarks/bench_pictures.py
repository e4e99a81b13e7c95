"""Encoded JPEGs into the encoder's pixels: pictures a second of CPU, decoder by decoder, and what each step costs.

Pictures of `--source` pixels a side are squashed to each of `--size`. Timed in turn, in one process and thread, in seconds
of CPU:

  pillow           the project's decoder without simplejpeg: draft-mode decoding by Pillow, scaled by `ops.resize`
  simplejpeg       the same by libjpeg-turbo on the bytes where they lie
  dali             NVIDIA DALI on the CPU, where it is installed
  draft            draft mode, then Pillow's own bicubic
  plain Pillow     `Image.open(...).convert("RGB").resize(..., BICUBIC)`: no draft mode, no look at EXIF
  reducing_gap 2   draft mode, then Pillow's `reducing_gap=2.0`: box-reduced by whole factors, then bicubic
  reduce           draft mode, then `Image.reduce` by the largest whole factor, then bicubic
  decoding alone   simplejpeg's decoding, at the same fraction of the size, and no resizing

The ones below the first three are other ways that were weighed; the last column says how far their pixels are from those of
plain Pillow, on average (0 to 255).
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import simplejpeg
from measuring import measure, parser, report
from PIL import Image

from megatron_vlm.config.pictures import PicturesConfig
from megatron_vlm.data.decoding.decoder import open_decoder
from megatron_vlm.data.decoding.placement import place
from megatron_vlm.errors import ConfigError

BICUBIC = Image.Resampling.BICUBIC


def photographs(count: int, side: int, quality: int, seed: int = 0) -> list[bytes]:
    """JPEGs of about a photograph's bytes a pixel: smooth ground, edges, a little noise."""
    rng = np.random.default_rng(seed)
    encoded = []
    for _ in range(count):
        ground = Image.fromarray(rng.integers(0, 256, (9, 9, 3)).astype(np.uint8)).resize((side, side), BICUBIC)
        edges = Image.fromarray(rng.integers(0, 256, (side // 24 + 1,) * 2 + (3,)).astype(np.uint8))
        drawn = Image.blend(ground, edges.resize((side, side), Image.Resampling.NEAREST), 0.25)
        grain = Image.fromarray(rng.integers(0, 256, (side, side, 3)).astype(np.uint8))
        stream = io.BytesIO()
        Image.blend(drawn, grain, 0.03).save(stream, "JPEG", quality=quality)
        encoded.append(stream.getvalue())
    return encoded


def plain(encoded: bytes, size: int) -> np.ndarray:
    with Image.open(io.BytesIO(encoded)) as picture:
        return np.asarray(picture.convert("RGB").resize((size, size), BICUBIC))


def with_draft(encoded: bytes, size: int) -> np.ndarray:
    with Image.open(io.BytesIO(encoded)) as picture:
        picture.draft("RGB", (size, size))
        return np.asarray(picture.convert("RGB").resize((size, size), BICUBIC))


def with_gap(encoded: bytes, size: int) -> np.ndarray:
    with Image.open(io.BytesIO(encoded)) as picture:
        picture.draft("RGB", (size, size))
        return np.asarray(picture.convert("RGB").resize((size, size), BICUBIC, reducing_gap=2.0))


def with_reduce(encoded: bytes, size: int) -> np.ndarray:
    with Image.open(io.BytesIO(encoded)) as picture:
        picture.draft("RGB", (size, size))
        whole = picture.convert("RGB")
        factor = min(whole.size) // size
        return np.asarray((whole.reduce(factor) if factor > 1 else whole).resize((size, size), BICUBIC))


def decoding_alone(encoded: bytes, size: int) -> np.ndarray:
    height, width, _, _ = simplejpeg.decode_jpeg_header(encoded)
    reduction = place("squash", (height, width), (size, size)).reduction
    least = {"min_height": -(-height // reduction), "min_width": -(-width // reduction)} if reduction > 1 else {}
    return simplejpeg.decode_jpeg(encoded, **least)


def ways(size: int) -> dict[str, Callable[[list[bytes]], list[np.ndarray]]]:
    found: dict[str, Callable[[list[bytes]], list[np.ndarray]]] = {}
    for name in ("pillow", "simplejpeg", "dali"):
        try:
            decoder = open_decoder(PicturesConfig(decoder=name))  # type: ignore[arg-type]
        except ConfigError:
            continue
        found[name] = partial(_decoded, decoder, size)
    others = {
        "draft": with_draft,
        "plain Pillow": plain,
        "reducing_gap 2": with_gap,
        "reduce": with_reduce,
        "decoding alone": decoding_alone,
    }
    for name, way in others.items():
        found[name] = partial(_each, way, size)
    return found


def _decoded(decoder: Any, size: int, encoded: list[bytes]) -> list[np.ndarray]:
    out = np.empty((len(encoded), size, size, 3), np.uint8)
    assert not decoder.decode(encoded, out)
    return list(out)


def _each(way: Callable[[bytes, int], np.ndarray], size: int, encoded: list[bytes]) -> list[np.ndarray]:
    return [way(data, size) for data in encoded]


def main() -> None:
    arguments = parser(__doc__, runs=9)
    arguments.add_argument("--pictures", type=int, default=32, help="of a timed call (default: %(default)s)")
    arguments.add_argument(
        "--source", type=int, nargs="+", default=[256, 1024], help="sides of the JPEGs (default: 256 1024)"
    )
    arguments.add_argument(
        "--size", type=int, nargs="+", default=[224, 256, 384], help="of the encoder (default: 224 256 384)"
    )
    arguments.add_argument("--quality", type=int, default=85, help="of the JPEGs (default: %(default)s)")
    args = arguments.parse_args()
    results: dict[str, Any] = {}
    for source in args.source:
        encoded = photographs(args.pictures, source, args.quality)
        print(f"{args.pictures} JPEGs of {source} px, {sum(map(len, encoded)) / len(encoded) / 1000:.0f} kB each")
        for size in args.size:
            calls = {name: partial(way, encoded) for name, way in ways(size).items()}
            timings = measure(calls, args.runs, time.process_time)
            reference = np.stack(calls["plain Pillow"]()).astype(int)
            speeds = {name: args.pictures / timing.median for name, timing in timings.items()}
            print(f"  squashed to {size} px{'':<4}{'pictures/s':>12}{'over plain':>12}{'apart':>8}")
            distances = {}
            for name, speed in speeds.items():
                apart = ""
                if name != "decoding alone":
                    distances[name] = float(np.abs(np.stack(calls[name]()) - reference).mean())
                    apart = f"{distances[name]:.2f}"
                print(f"    {name:<19}{speed:>12.0f}{speed / speeds['plain Pillow']:>12.2f}{apart:>8}")
            results[f"{source} to {size}"] = {"timings": timings, "pictures_per_second": speeds, "apart": distances}
    report(args, results)


if __name__ == "__main__":
    main()
