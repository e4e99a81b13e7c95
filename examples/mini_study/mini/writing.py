"""Files of the mini study, in the forms that the field's own data come in."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zstandard
from PIL import Image

SHARD_PICTURES = 2000


def png(pixels: npt.NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write_captioned(folder: Path, name: str, pairs: Iterable[tuple[str, npt.NDArray[np.uint8], Mapping[str, Any]]]) -> None:
    """WebDataset tars `NAME-00000.tar`: key, pixels and the `.json`, whose `caption` is the `.txt` as well."""
    shard: list[tuple[str, bytes]] = []
    written = 0
    for number, (key, pixels, record) in enumerate(pairs, 1):
        key = key.replace(".", "_")  # a key ends at its first dot
        shard += [
            (f"{key}.png", png(pixels)),
            (f"{key}.txt", str(record["caption"]).encode()),
            (f"{key}.json", json.dumps({**record, "status": "success", "key": key}).encode()),
        ]
        if number % SHARD_PICTURES == 0:
            write_tar(folder / f"{name}-{written:05d}.tar", shard)
            written, shard = written + 1, []
    if shard:
        write_tar(folder / f"{name}-{written:05d}.tar", shard)


def write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> None:
    """The same bytes whenever and by whomever it is written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in members:
            entry = tarfile.TarInfo(name)
            entry.size, entry.mtime, entry.mode = len(data), 0, 0o644
            tar.addfile(entry, io.BytesIO(data))


def write_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """JSON lines; compressed where the name ends with .zst."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()
    path.write_bytes(zstandard.ZstdCompressor(level=10).compress(text) if path.suffix == ".zst" else text)
