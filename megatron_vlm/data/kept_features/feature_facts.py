"""NAME.json of a file of features: which encoder made them, of which dataset, how large a picture was.

NAME.bin and NAME.idx are Megatron's indexed format with the documents and sequences of the dataset. Where that has a
picture, the sequence is its features, `[patches, width]` bf16 in 16-bit elements (the format has no code for bf16; u16 holds
the bits), patches in the order in which the encoder gives them; where it has text, nothing. Pictures of the same bytes are
there once: their sequences begin at one place of the .bin.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from megatron_vlm import __version__
from megatron_vlm.data.indexed_format import dataset_paths
from megatron_vlm.data.indexed_reader import IndexedReader
from megatron_vlm.errors import DataError

#: the bits of a bf16
ELEMENT = np.dtype("<u2")
#: what NAME.json says that it is of
FEATURES = "features"


@dataclass(frozen=True, slots=True)
class FeatureFacts:
    """
    Attributes:
        weights: digest of the encoder's weights, whatever the layout (`models.encoder_digest`).
        settings: as of `config.kept_features.feature_settings`.
        width: features of a patch.
        dataset: fingerprint of the dataset.
        broken: sequence, in decimals -> why its picture did not decode; its features are zeros. Of pictures that repeat, the
            first.
    """

    weights: str
    settings: dict[str, Any]
    width: int
    dataset: str
    broken: dict[str, str] = field(default_factory=dict)

    def head(self) -> dict[str, Any]:
        """What is known before a picture is read: plain values as JSON gives them back."""
        told = asdict(self)
        del told["broken"]
        plain: dict[str, Any] = json.loads(json.dumps(told))
        return plain

    def as_metadata(self, more: Mapping[str, Any]) -> dict[str, Any]:
        """The content of NAME.json, without checksums; `more` is what else a reader may want to know."""
        tool = {"tool": "megatron_vlm", "tool_version": __version__, "kind": FEATURES, "dtype": "bf16"}
        return {**tool, **more, **self.head(), "broken": dict(self.broken)}


def read_facts(prefix: Path | str) -> FeatureFacts:
    """Of the file of features at `prefix`.

    Raises:
        DataError: there is none, or something else is there.
    """
    path = dataset_paths(prefix).metadata
    known = IndexedReader.read_metadata(path)
    if not known:
        raise DataError(f"{path} does not exist: {prefix} holds no features; make them with megatron-vlm encode")
    names = ("weights", "settings", "width", "dataset", "broken")
    if known.get("kind") != FEATURES or not all(name in known for name in names):
        raise DataError(f"{path} is not of features; give what megatron-vlm encode wrote")
    facts = FeatureFacts(*(known[name] for name in names))
    sound = isinstance(facts.width, int) and isinstance(facts.settings, dict) and isinstance(facts.broken, dict)
    if not sound or facts.width < 1 or not all(key.isdecimal() for key in facts.broken):
        raise DataError(f"{path} is damaged: no width, settings or broken pictures as they are written; encode again")
    return facts


def differences(facts: FeatureFacts, settings: Mapping[str, Any]) -> list[str]:
    """Settings in which a file differs from a run, in words; empty where it does not."""
    wanted = json.loads(json.dumps(settings))
    names = [*wanted, *(name for name in facts.settings if name not in wanted)]
    return [
        f"{name} {facts.settings.get(name)} (here {wanted.get(name)})"
        for name in names
        if facts.settings.get(name) != wanted.get(name)
    ]
