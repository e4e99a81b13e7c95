"""What is known of a dataset's sequences without decoding them: NAME.sequences.npy, beside the .bin and .idx.

A plain .npy file, int32 `[N, 2]`, one row a sequence in the order of the .idx: a picture's (height, width) in pixels, turned
upright as its header says, and (1, 0) for text that is learnt or (0, 0) for text that is only read, such as a user's turn.
It is this package's own: Megatron's tools open the dataset without it, and a dataset without it is all learnt, of pictures
whose size is not known. It can be made anew from the .bin, except for what is learnt.
"""

from __future__ import annotations

import io
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from megatron_vlm.data import atomic_file
from megatron_vlm.data.disk_column import DiskColumn
from megatron_vlm.data.hashed_file import HashedFile
from megatron_vlm.data.indexed_format import dataset_paths
from megatron_vlm.errors import DataError


def open_sequence_facts(prefix: Path | str, sequences: int) -> npt.NDArray[np.int32] | None:
    """int32 `[sequences, 2]`, mapped and read-only; None where the dataset has no such file.

    Raises DataError where the file is no .npy, or is of another number of sequences.
    """
    path = dataset_paths(prefix).sequences
    if not path.is_file():
        return None
    remedy = "remove it, or preprocess the sources again"
    try:
        facts: npt.NDArray[Any] = np.load(path, mmap_mode="r" if sequences else None, allow_pickle=False)
    except Exception as error:  # numpy raises whatever it likes on a damaged header: SyntaxError, TokenError, ...
        raise DataError(f"{path} cannot be read as an .npy: {error}; {remedy}") from error
    if facts.shape != (sequences, 2) or facts.dtype != np.dtype("<i4"):
        raise DataError(
            f"{path} is {facts.dtype} {list(facts.shape)} where the dataset's {sequences} sequences need int32 "
            f"[{sequences}, 2]: it belongs to another dataset; {remedy}"
        )
    return facts


class FactsWriter:
    """Writes NAME.sequences.npy aside; the caller gives it its name (`atomic_file.commit`) or discards it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._rows = DiskColumn(path.with_name(path.name + ".rows.partial"), "<i4")

    def append(self, first: int, second: int) -> None:
        self._rows.append(first)
        self._rows.append(second)

    def extend(self, facts: npt.NDArray[np.int32]) -> None:
        """int32 `[n, 2]`."""
        self._rows.extend(facts.reshape(-1))

    def finish(self) -> list[str]:
        """Write the .npy to its partial file; the hashes of its blocks."""
        header = io.BytesIO()
        shape = (self._rows.count // 2, 2)
        np.lib.format.write_array_header_1_0(header, {"descr": "<i4", "fortran_order": False, "shape": shape})
        with HashedFile(atomic_file.partial_path(self.path)) as stream:
            for data in itertools.chain([header.getvalue()], (block.tobytes() for block in self._rows.blocks())):
                stream.write(data)
        self._rows.discard()
        return stream.digests()

    def close(self) -> None:
        """Nothing more is appended; `finish` comes later."""
        self._rows.close()

    def discard(self) -> None:
        self._rows.discard()
        atomic_file.discard(self.path)
