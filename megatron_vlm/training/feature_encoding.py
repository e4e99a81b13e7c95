"""A dataset's pictures through a checkpoint's encoder, once: what `megatron-vlm encode` does, on one rank or several."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from megatron_vlm.config.checks import check_encoder
from megatron_vlm.config.kept_features import feature_settings
from megatron_vlm.config.picture_rows import PictureRows
from megatron_vlm.config.run import RunConfig
from megatron_vlm.data.decoding.decoder import open_decoder, with_resolved_decoder
from megatron_vlm.data.indexed_reader import IndexedReader
from megatron_vlm.data.kept_features.feature_facts import FeatureFacts
from megatron_vlm.data.kept_features.feature_reader import Features
from megatron_vlm.data.kept_features.feature_writer import FeatureWriter
from megatron_vlm.data.kept_features.picture_blocks import PictureBlocks, picture_blocks
from megatron_vlm.data.micro_batch_arrays import Sizes, canvases_in
from megatron_vlm.errors import DataError
from megatron_vlm.models.encoder_building import build_encoder
from megatron_vlm.models.encoder_digest import encoder_digest
from megatron_vlm.models.vision import VisionEncoder
from megatron_vlm.models.whole_encoder import groups_of_one
from megatron_vlm.ops.faults import raise_faults
from megatron_vlm.parallel import topology as topology_module
from megatron_vlm.parallel.topology import Topology
from megatron_vlm.training import checkpoint as checkpoints


@dataclass(frozen=True)
class EncodeRequest:
    """
    Attributes:
        checkpoint: a whole one; `config` is its configuration, with what was changed of it.
        dataset, output: prefixes.
        image_size: side of the pictures in pixels, None: the encoder's own; `image_pool` as of the stage that reads them.
        pictures: that go through the encoder together.
        workers: threads that decode.
    """

    checkpoint: Path
    config: RunConfig
    dataset: Path
    output: Path
    image_size: int | None = None
    image_pool: int = 1
    pictures: int = 32
    workers: int = 1


class _Decoding:
    """Pictures of a dataset as the encoder takes them, decoded by threads that each have a decoder."""

    def __init__(self, request: EncodeRequest, dataset: IndexedReader, blocks: PictureBlocks) -> None:
        self._config, self._dataset, self._blocks = request.config, dataset, blocks
        self._native = request.config.data.pictures.resize == "native"
        self._own = threading.local()

    def __call__(self, numbers: range) -> tuple[Tensor, Sizes | None, dict[int, str]]:
        """Blocks by number -> pixels as `VisionEncoder.forward` takes them, and why some of them do not decode."""
        if not hasattr(self._own, "decoder"):
            vision = self._config.model.vision
            self._own.decoder = open_decoder(self._config.data.pictures, vision.pixel_mean)
        encoded = [self._dataset.image_bytes(int(sequence)) for sequence in self._blocks.first[list(numbers)]]
        shown: Sizes = tuple((int(h), int(w)) for h, w in self._blocks.sizes[list(numbers)])
        flat = np.empty(3 * sum(height * width for height, width in shown), np.uint8)
        reasons = self._own.decoder.decode(encoded, canvases_in(flat, shown))
        if self._native:
            return torch.from_numpy(flat), shown, reasons
        side = shown[0][0]
        return torch.from_numpy(flat.reshape(len(shown), side, side, 3)), None, reasons


def _ahead(
    jobs: Sequence[range], decode: Callable[[range], Any], pool: ThreadPoolExecutor, count: int
) -> Iterator[tuple[range, Any]]:
    """Each job with what `decode` made of it, in order, `count` of them under way."""
    waiting: deque[tuple[range, Future[Any]]] = deque()
    for job in jobs:
        waiting.append((job, pool.submit(decode, job)))
        if len(waiting) > count:
            first, future = waiting.popleft()
            yield first, future.result()
    for first, future in waiting:
        yield first, future.result()


def as_bits(features: Tensor) -> Features:
    """Any features as the bits of bf16, rounded to the nearest: uint16, on the host, of the same shape."""
    return features.to(torch.bfloat16).cpu().contiguous().view(torch.int16).numpy().view(np.uint16)


class FeatureEncoding:
    """The encoder of a checkpoint on this rank, and the file that it fills. Collective. `hashed` is told of pictures as they
    are read for the first time.

    Raises:
        ConfigError: pictures that do not fold into whole rows.
        DataError: no picture, no whole checkpoint, or no room.
    """

    def __init__(self, request: EncodeRequest, hashed: Callable[[int], object] = lambda count: None) -> None:
        config = with_resolved_decoder(request.config)
        self.request, self.config = request, config
        model = config.model
        size = request.image_size or model.vision.image_size
        fold = model.projector.pixel_shuffle * request.image_pool
        check_encoder(config, size, fold)
        self.topology: Topology = topology_module.initialize(config.parallel, config.schedule.seed)
        self.dataset = IndexedReader(request.dataset)
        rows = PictureRows(model.image_tokens_at(size, request.image_pool))
        if config.data.pictures.resize == "native":
            rows = PictureRows(rows.most, model.vision.patch_size, fold)
        patch, width = model.vision.patch_size, model.vision_width
        # each rank hashes all pictures: reading them is little beside encoding them, and nothing has to be sent
        self.blocks = picture_blocks(self.dataset, rows, size, patch, width, hashed)
        checkpoints.require_undamaged(request.checkpoint, config.checkpoint.verify)
        self.encoder = self._open_encoder()
        digest = encoder_digest(self.encoder)
        settings = feature_settings(config, size, fold)
        self.facts = FeatureFacts(digest, settings, width, self.dataset.fingerprint)
        self.writer = FeatureWriter(request.output, self.facts, self.blocks, self.topology.rank)

    def _open_encoder(self) -> VisionEncoder:
        device = self.topology.device
        encoder = build_encoder(self.config, device.type, groups_of_one()).to(device)
        if encoder.config.bf16:
            encoder.bfloat16()
        checkpoints.load_encoder(encoder, self.request.checkpoint)
        return encoder.eval()

    @property
    def share(self) -> int:
        """Pictures that this rank encodes, those that were done included."""
        return sum(len(self.writer.blocks_of(part)) for part in self._parts)

    @property
    def _parts(self) -> range:
        return range(self.topology.rank, self.writer.parts, self.topology.world_size)

    def run(self, advance: Callable[[int], object] = lambda count: None) -> dict[str, Any] | None:
        """Encode what is not encoded yet; `advance` is told of pictures of this rank, and first of those that were done.

        Returns:
            what NAME.json says, on the first rank, None on others and where the very file was there already.
        """
        first = self.topology.rank == 0
        if self._agreed(first and self.writer.is_done()):
            return None
        failed: Exception | None = None
        if first:
            try:
                self.writer.begin()
            except Exception as error:  # other ranks wait for the word
                failed = error
        if self._agreed(failed is not None):
            if failed is not None:
                raise failed
            raise DataError(f"{self.request.output}: refused by rank 0, which says why")
        done = self.writer.done()
        dist.barrier()  # nobody writes a journal before all have read them
        try:
            for part in self._parts:
                numbers = self.writer.blocks_of(part)
                if part in done:
                    advance(len(numbers))
                else:
                    self.writer.end_part(part, self._encode(numbers, advance))
        finally:
            self.writer.close()
        dist.barrier()
        return self.writer.finish(self.dataset) if first else None

    @torch.no_grad()
    def _encode(self, numbers: range, advance: Callable[[int], object]) -> dict[str, str]:
        """Write the features of a part; which pictures did not decode, by the sequence that they are first in."""
        together, broken = self.request.pictures, {}
        jobs = [numbers[at : at + together] for at in range(0, len(numbers), together)]
        decode, workers = _Decoding(self.request, self.dataset, self.blocks), self.request.workers
        with ThreadPoolExecutor(workers) as pool:
            for job, (pixels, sizes, reasons) in _ahead(jobs, decode, pool, workers):
                bits = as_bits(self.encoder(pixels.to(self.topology.device), sizes)).reshape(-1, self.facts.width)
                raise_faults(self.topology.device)
                at, patch = 0, self.config.model.vision.patch_size
                for number, block in enumerate(job):
                    height, width = self.blocks.sizes[block].tolist()
                    end = at + (height // patch) * (width // patch)
                    if number in reasons:
                        bits[at:end] = 0
                        broken[str(self.blocks.first[block])] = reasons[number]
                    self.writer.write_block(block, bits[at:end])
                    at = end
                advance(len(job))
        return broken

    def _agreed(self, said: bool) -> bool:
        """Whether any rank said so."""
        flag = torch.tensor([float(said)], device=self.topology.device)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return bool(flag.item())


def cores_of_a_rank() -> int:
    """Threads that a rank of this machine may decode with."""
    return max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
