"""Features that a run reads from files instead of encoding pictures: opened at its start, compared with its encoder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from megatron_vlm.config.kept_features import stages_that_decode
from megatron_vlm.config.run import RunConfig
from megatron_vlm.data.documents import DocumentSource
from megatron_vlm.data.kept_features.opening import open_features
from megatron_vlm.errors import DataError
from megatron_vlm.models.encoder_digest import encoder_digest
from megatron_vlm.training.engine import Engine, unwrap


class KeptFeatures:
    """Of a run on this rank.

    Raises:
        DataError: as `open_features`.
    """

    def __init__(self, config: RunConfig, sources: Mapping[str, DocumentSource]) -> None:
        self.config = config
        self._facts = open_features(config, sources)
        self._stages = {segment.shape.stage for segment in config.segments if segment.shape.features}
        self._compared: int | None = None

    @property
    def prefixes(self) -> dict[str, str]:
        """Those of `data.features` that are read."""
        return {name: self.config.data.features[name] for name in self._facts}

    def lines(self) -> Iterator[str]:
        """For the log: what is read, and in which stages not."""
        for name, prefix in self.prefixes.items():
            yield f"pictures of {name} are not encoded: their features are read from {prefix}"
        decoding = ", ".join(repr(name) for name in stages_that_decode(self.config))
        if self.config.data.features and decoding:
            yield f"data.features is not read in stage {decoding}: the encoder is trained there, or was before"

    def compare_weights(self, engine: Engine) -> None:
        """At the start of a stage, when weights are what they will be: the files are of this very encoder.

        Collective where the engine's stage reads features; nothing happens a second time in one stage.

        Raises:
            DataError: on every rank, they are not.
        """
        stage = engine.stage
        if stage not in self._stages or not self._facts or self._compared == stage:
            return
        self._compared = stage
        ours = _digest(engine)
        for name, facts in self._facts.items():
            if facts.weights != ours:
                raise DataError(
                    f"{self.config.data.features[name]} was made by an encoder of other weights ({facts.weights[:12]}) than "
                    f"this run's ({ours[:12]}); encode {self.config.data.sources[name]} with the checkpoint that the run "
                    f"begins with (megatron-vlm encode), or leave data.features out"
                )


def _digest(engine: Engine) -> str:
    """Of the encoder, told to ranks that hold none."""
    encoder = unwrap(engine.chunks[0]).vision
    told = torch.zeros(32, dtype=torch.int32, device=engine.topology.device)
    with engine.whole_parameters():
        if encoder is not None:
            digest = encoder_digest(encoder, parallel_state.get_tensor_model_parallel_group())
            told += torch.tensor(list(bytes.fromhex(digest)), dtype=torch.int32, device=told.device)
    dist.all_reduce(told, op=dist.ReduceOp.MAX)
    return bytes(told.tolist()).hex()
