"""Features of a dataset's pictures, read where their file is mapped."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from megatron_vlm.data.indexed_reader import IndexedReader
from megatron_vlm.data.kept_features.feature_facts import ELEMENT, read_facts
from megatron_vlm.errors import DataError

Features = npt.NDArray[np.uint16]


class FeatureReader:
    """The features at `prefix`, of the pictures of `dataset`.

    Raises:
        DataError: there are none, they are damaged, or they are of another dataset.
    """

    def __init__(self, prefix: Path | str, dataset: IndexedReader) -> None:
        self.facts = read_facts(prefix)
        self.reader = IndexedReader(prefix)
        if self.facts.dataset != dataset.fingerprint or self.reader.sequence_count != dataset.sequence_count:
            raise DataError(
                f"{prefix} holds features of another dataset than {dataset.prefix}, or of what that was; encode it again"
            )
        if self.reader.dtype != ELEMENT:
            raise DataError(f"{prefix}.bin has elements of {self.reader.dtype}, and features are bf16 in {ELEMENT}")
        pointers = self.reader.sequence_pointers
        self._broken = {
            int(pointers[int(number)]): reason for number, reason in self.facts.broken.items() if int(number) < len(pointers)
        }

    def read(self, sequence: int, into: Features) -> str | None:
        """Write a picture's features into `into`, uint16 (the bits of bf16), of any shape of as many numbers.

        Returns why the picture did not decode, or None; what does not has zeros.

        Raises:
            DataError: there are not so many numbers.
        """
        found = self.reader.tokens(sequence)
        if found.size != into.size:
            raise DataError(
                f"{self.reader.prefix}: sequence {sequence} has {found.size} numbers where the picture takes {into.size}; "
                f"encode the dataset again"
            )
        into[...] = found.reshape(into.shape)
        return self._broken.get(int(self.reader.sequence_pointers[sequence])) if self._broken else None
