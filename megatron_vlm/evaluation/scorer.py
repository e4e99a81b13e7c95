"""A model in a layout, ready to score documents: a checkpoint's, or that of a run as it stands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from megatron_vlm.config.checks import layout_problems
from megatron_vlm.config.parallel import ParallelConfig
from megatron_vlm.config.performance import PerformanceConfig
from megatron_vlm.config.precision import PrecisionConfig
from megatron_vlm.config.run import RunConfig
from megatron_vlm.config.steps import StepShape
from megatron_vlm.data.opening import token_counts
from megatron_vlm.data.tokenizer import Tokenizer
from megatron_vlm.errors import ConfigError, DataError
from megatron_vlm.interop.checkpoint_reader import CheckpointTensors
from megatron_vlm.interop.model_tensors import WORDS
from megatron_vlm.parallel import topology as topology_module
from megatron_vlm.parallel.topology import Topology
from megatron_vlm.training import checkpoint as checkpoints
from megatron_vlm.training.engine import Engine
from megatron_vlm.training.scoring import Scored, needs_pictures, score_documents
from megatron_vlm.training.validation import trained_shape


class Scorer:
    """A model on the ranks that were started, with the tokenizer that it was trained with.

    Attributes:
        step: steps that the model was trained for.
        shape: length, size of pictures and tokens a picture of the last of them.
        tokens: counts of the tokenizer, as the model was built with.
    """

    def __init__(
        self, config: RunConfig, engine: Engine, topology: Topology, tokenizer: Tokenizer, shape: StepShape, step: int
    ) -> None:
        self.config, self.engine, self.topology, self.tokenizer = config, engine, topology, tokenizer
        self.shape, self.step, self.tokens = shape, step, token_counts(tokenizer)

    @classmethod
    def open(cls, checkpoint: Path, config: RunConfig) -> Scorer:
        """That of a checkpoint, in the layout of `config`.

        Raises:
            ConfigError: the layout does not fit the model or the ranks.
            DataError: no whole checkpoint; its tokenizer changed since; or it was imported without one, and
                `config` has none either, or one of more words than it has rows for.
        """
        run = checkpoints.read_run_file(checkpoint)
        problems = layout_problems(config, topology_module.world_size_from_environment())
        if problems:
            raise ConfigError("this layout cannot run:\n" + "\n".join(f"  - {line}" for line in problems))
        step = int(run["step"])
        if not config.data.tokenizer:
            raise DataError(f"{checkpoint} was imported without a tokenizer; give the model's own with --data.tokenizer")
        tokenizer = Tokenizer.load(Path(config.data.tokenizer))
        trained_with = run["tokenizer_fingerprint"]
        if trained_with is None:
            config = _with_rows_of(checkpoint, config, tokenizer)
        elif tokenizer.fingerprint != trained_with:
            raise DataError(
                f"{config.data.tokenizer} is not the tokenizer that {checkpoint} was trained with; give that one with "
                f"--data.tokenizer"
            )
        topology = topology_module.initialize(config.parallel, config.schedule.seed)
        checkpoints.require_undamaged(checkpoint, config.checkpoint.verify)
        engine = Engine(config, token_counts(tokenizer), topology)
        checkpoints.load_model(engine, checkpoint)
        return cls(config, engine, topology, tokenizer, trained_shape(config, step), step)

    @property
    def decodes(self) -> bool:
        """Whether the documents of this rank need their pictures (`needs_pictures`)."""
        return needs_pictures(self.shape, self.topology)

    def score(self, documents: Sequence[Scored], greedy: bool = False) -> np.ndarray:
        """float64 `[documents, 2]`: negative log-likelihood in nats, and the number of labels it sums over; with `greedy`
        `[documents, 3]`, the last how many of the labels are the likeliest token at their place."""
        return score_documents(self.engine, self.shape, self.topology, self.tokens, documents, greedy)


def _with_rows_of(checkpoint: Path, config: RunConfig, tokenizer: Tokenizer) -> RunConfig:
    """`config`, with which the tokenizer's words make the rows that a checkpoint imported without a tokenizer has.

    Raises:
        DataError: it has fewer rows than the tokenizer has words.
    """
    rows = CheckpointTensors(checkpoint, config.model.lora).shapes[WORDS][0]
    if tokenizer.vocab_size > rows:
        raise DataError(
            f"{config.data.tokenizer} has {tokenizer.vocab_size} words, and {checkpoint}, which was imported without a "
            f"tokenizer, {rows} rows for them; give the model's own with --data.tokenizer, or import it again with this one"
        )
    language = replace(config.model.language, vocab_pad_multiple=rows)
    return replace(config, model=replace(config.model, language=language))


#: fields of `parallel` that part the model: one of them given, and the others are not those of the training
_PARTING = (
    "tensor_model_parallel_size",
    "pipeline_model_parallel_size",
    "num_layers_in_first_pipeline_stage",
    "num_layers_in_last_pipeline_stage",
    "virtual_pipeline_model_parallel_size",
    "context_parallel_size",
)


def layout_for(config: RunConfig, world_size: int, given: dict[str, Any], generates: bool = False) -> RunConfig:
    """The checkpoint's configuration for `world_size` ranks.

    What is `given` (fields of `parallel`) holds; the rest is the training layout where it fits, else one rank's. `generates`
    leaves out what generation cannot use: sequence parallelism and interleaved stages, which change no weight. What is
    scored is scored in bf16 or fp32, as during training (`Engine.whole_parameters`).
    """
    # what context-parallel ranks share in training, they need not in scoring: they score rows of their own
    trained = replace(config.parallel, context_parallel_size=1)
    fits = world_size % trained.model_ranks == 0
    base = trained if fits and given.keys().isdisjoint(_PARTING) else ParallelConfig(precision=trained.precision)
    if generates:
        base = replace(base, sequence_parallel=False, virtual_pipeline_model_parallel_size=1)
    plain: dict[str, Any] = {
        "overlap_grad_reduce": False,
        "overlap_param_gather": False,
        "recompute": "none",
        "device": "auto",
        "layer_spec": "auto",
    }
    parallel = replace(base, **{**plain, **given})
    return replace(config, parallel=parallel, precision=PrecisionConfig(), performance=PerformanceConfig())
