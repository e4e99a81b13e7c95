"""What a rank trains on: steps planned ahead, its share of their packs made ready, broken pictures agreed on."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from megatron_vlm.config.data import TokenCounts
from megatron_vlm.config.loading import from_map
from megatron_vlm.config.run import RunConfig
from megatron_vlm.config.steps import StepShape
from megatron_vlm.data.broken_pictures import BrokenPicture
from megatron_vlm.data.documents import DocumentSource, Span
from megatron_vlm.data.loader.batch_loader import BatchLoader
from megatron_vlm.data.loader.dispatcher import LoaderFaults
from megatron_vlm.data.loader.opening import maker_spec
from megatron_vlm.data.micro_batch import MicroBatch
from megatron_vlm.data.packing import PackPlanner
from megatron_vlm.data.step_plan import StepPlan
from megatron_vlm.ops.pack_balance import balance_packs
from megatron_vlm.parallel.topology import Topology
from megatron_vlm.planning.flops import BatchShape, step_flops
from megatron_vlm.training.broken_pictures import agree_on_broken, without_broken
from megatron_vlm.training.device_copies import DeviceCopies

#: opens the sources of a map of names to prefixes
OpenSources = Callable[[dict[str, str]], dict[str, DocumentSource]]


@dataclass(frozen=True)
class StepBatches:
    """A step that can be trained on.

    `batches` are this rank's micro-batches on its device, or on their way there (`MicroBatch.arrive`), readable until the
    next step is asked for; `shape` is of the whole global batch; `waited` is in seconds; `broken` are the step's pictures
    that do not decode, the same on every rank;
    `loader_faults` count this rank's workers that were replaced.
    """

    plan: StepPlan
    batches: list[MicroBatch]
    shape: BatchShape
    waited: float
    broken: tuple[BrokenPicture, ...]
    loader_faults: LoaderFaults


def batch_shape(spans: Sequence[Span], packs: int, shape: StepShape) -> BatchShape:
    """What the cost of `spans` in so many packs depends on."""
    pictures, patches = sum(span.pictures for span in spans), None
    if shape.picture.native:
        each = shape.fold**2  # patches that become one row
        patches = (each * sum(span.rows for span in spans), each**2 * sum(span.squares for span in spans))
    lengths = tuple(span.length for span in spans)
    return BatchShape(packs * shape.sequence_length, lengths, pictures, shape.image_size, patches, bool(shape.features))


class StepData:
    """The steps of a run for one rank, from any step on.

    Args:
        config: of the run; its decoder is named.
        sources: by name, opened.
        vocab_size: padded, for the cost of a pack.
        say: takes lines for the log, of any rank.
        features: source -> prefix of its pictures' features, of those that are read (`KeptFeatures.prefixes`).
    """

    def __init__(
        self,
        config: RunConfig,
        sources: dict[str, DocumentSource],
        tokens: TokenCounts,
        topology: Topology,
        vocab_size: int,
        say: Callable[[str], None],
        features: Mapping[str, str] | None = None,
    ) -> None:
        self.config, self.sources, self.topology, self.vocab_size, self._say = config, sources, topology, vocab_size, say
        self.planner = PackPlanner(sources, config)
        self.prefixes = [str(source.reader.prefix) for source in sources.values()]
        vision = config.model.vision
        decodes = topology.on_first_stage or config.parallel.vision == "data_all_stages"
        self._spec = maker_spec(sources, tokens, decodes, config.data.pictures, vision.pixel_mean, features)
        self._copies = DeviceCopies(topology.device)
        self._loader: BatchLoader | None = None
        #: of the step that was given out last; None before the first
        self.plan: StepPlan | None = None
        self._state = self.planner.state()

    @property
    def state(self) -> dict[str, Any]:
        """The place behind the step that was given out last: what a checkpoint keeps."""
        return self._state

    @property
    def ended(self) -> str:
        """Why the data ended before the run's last step; empty as long as it did not."""
        return self.planner.ended

    def load(self, state: dict[str, Any], config_map: dict[str, Any], open_sources: OpenSources) -> list[str]:
        """Go on where a checkpoint was, with another curriculum or other sources if they were changed.

        Args:
            state, config_map: of the checkpoint, the latter as its run file has it.
            open_sources: for sources that are no longer in the run, to know what of them was drawn.

        Returns:
            what changed, for the log. Raises DataError as `PackPlanner.load` does.
        """
        before = None
        if state["plan"] != self.planner.fingerprint:
            old = from_map(config_map)
            gone = {name: prefix for name, prefix in old.data.sources.items() if name not in self.sources}
            known = {**self.sources, **open_sources(gone)}
            before = PackPlanner({name: known[name] for name in old.data.sources}, old)
        told = self.planner.load(state, before)
        self._state = self.planner.state()
        return told

    def next(self, loaded_hook: Callable[[], None] = lambda: None) -> StepBatches | None:
        """The next step; None where the data is at its end. Every rank calls it, and all get the same answer.

        `loaded_hook` is called when this rank has its data, before it meets the other ranks.

        Raises:
            DataError: a document that must not be trained on; a broken picture where `data.pictures.broken` is `stop`.
        """
        begun = time.perf_counter()
        if self._loader is None:
            self._loader = self._open_loader()
        loaded = next(self._loader, None)
        waited = time.perf_counter() - begun
        if loaded is None:
            return None
        loaded_hook()
        self.plan, self._state = loaded.plan, loaded.plan.state
        shape = loaded.plan.shape
        spans = [span for pack in loaded.plan.packs for span in pack]
        whole = batch_shape(spans, len(loaded.plan.packs), shape)
        batches, broken = self._without_broken(loaded.batches, loaded.plan) if whole.pictures else (loaded.batches, ())
        return StepBatches(loaded.plan, self._copies.begin(batches), whole, waited, broken, loaded.faults)

    def _open_loader(self) -> BatchLoader:
        """Opened with the first step, so that planning begins where the run does."""
        return BatchLoader(
            self._spec,
            self.planner.plans(),
            self.share,
            self.config.loader,
            [segment.shape for segment in self.config.segments],
            ranks=self.topology.data_size,
            pin_memory=self.topology.device.type == "cuda",
            say=self._say,
        )

    def _without_broken(
        self, batches: list[MicroBatch], plan: StepPlan
    ) -> tuple[list[MicroBatch], tuple[BrokenPicture, ...]]:
        found = [batch.broken for batch in batches]
        agreed = agree_on_broken(found, self.topology.data_rank, None, self.topology.device)
        policy = self.config.data.pictures.broken
        return without_broken(batches, agreed, plan.shape.picture, policy, self.prefixes), agreed.all

    def share(self, plan: StepPlan) -> list[int]:
        """The packs of a step that this data-parallel rank computes, by number."""
        return self.share_of([batch_shape(pack, 1, plan.shape) for pack in plan.packs], plan.shape.stage)

    def share_of(self, shapes: Sequence[BatchShape], stage: int) -> list[int]:
        """Every rank gets as many packs, and of like cost in all, so that none waits for another. Costs are operations, the
        encoder's included."""
        ranks = self.topology.data_size
        if ranks == 1:
            return list(range(len(shapes)))
        frozen = self.config.curriculum.stages[stage].freeze
        costs = np.array([step_flops(self.config.model, self.vocab_size, shape, frozen) for shape in shapes], np.float64)
        dealt = balance_packs(costs, ranks, len(shapes) // ranks)
        return [int(number) for number in dealt.order[0, self.topology.data_rank]]

    def close(self) -> None:
        """End the workers."""
        if self._loader is not None:
            self._loader.close()
            self._loader = None
