"""The model of this rank made trainable: megatron-core's DDP and optimiser, rebuilt where a stage trains other modules."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallelConfig, finalize_model_grads
from megatron.core.transformer.module import Float16Module, MegatronModule
from torch import Tensor

from megatron_vlm.config.data import TokenCounts
from megatron_vlm.config.run import RunConfig
from megatron_vlm.data.micro_batch import MicroBatch
from megatron_vlm.models.fp8 import without_fp8
from megatron_vlm.models.initialization import initialize_parameters, note_global_names
from megatron_vlm.models.vlm import VisionLanguageModel
from megatron_vlm.parallel.picture_shares import sum_gradients
from megatron_vlm.parallel.topology import Topology
from megatron_vlm.training.data_parallel import DataParallel
from megatron_vlm.training.encoding import StepEncoding
from megatron_vlm.training.layer_graphs import LayerGraphs
from megatron_vlm.training.optimizer import Optimizer, read_state, write_state
from megatron_vlm.training.parameter_groups import global_name, is_trained
from megatron_vlm.training.updates import UpdateCount
from megatron_vlm.training.user_buffers import start_user_buffers


def build_chunks(config: RunConfig, tokens: TokenCounts, topology: Topology) -> list[MegatronModule]:
    """The model chunks of this rank (one, or one a virtual stage), with first weights; bf16 ones wrapped."""
    virtual = config.parallel.virtual_pipeline_model_parallel_size
    device_type = topology.device.type
    chunks: list[MegatronModule] = []
    for number in range(virtual):
        model = VisionLanguageModel(
            config,
            tokens,
            device_type,
            pre_process=topology.on_first_stage and number == 0,
            post_process=topology.on_last_stage and number == virtual - 1,
            vp_stage=number if virtual > 1 else None,
        )
        chunks.append(model)
    initialize_parameters(chunks, config.model.language, config.schedule.seed)
    note_global_names(chunks)
    wrapped: list[MegatronModule] = []
    for model in chunks:
        model.to(topology.device)
        # megatron-core's tensor-parallel attributes live on the parameters and outlive both steps
        wrapped.append(Float16Module(model.config, model) if model.config.bf16 else model)
    return wrapped


def unwrap(chunk: torch.nn.Module) -> VisionLanguageModel:
    while hasattr(chunk, "module"):
        chunk = chunk.module  # type: ignore[assignment]
    assert isinstance(chunk, VisionLanguageModel)
    return chunk


def _renew_parameters(chunk: torch.nn.Module) -> None:
    """Every parameter as a new object over a copy of its values, with what megatron-core noted on it."""
    renewed: dict[int, torch.nn.Parameter] = {}  # one object may serve two modules
    for module in chunk.modules():
        for name, old in list(module._parameters.items()):
            if old is None:
                continue
            if id(old) in renewed:
                module._parameters[name] = renewed[id(old)]
                continue
            # a copy: the old storage is a part of the old DDP's one buffer, and would keep all of it
            new = torch.nn.Parameter(old.detach().clone(), requires_grad=old.requires_grad)
            kept = {k: v for k, v in vars(old).items() if k not in ("main_grad", "main_param", "grad_added_to_main_grad")}
            vars(new).update(kept)
            module._parameters[name] = renewed[id(old)] = new


class Engine:
    """Model chunks, DDP and optimiser of this rank, at one stage of the curriculum.

    `enter_stage` sets what is trained. Where that changes, DDP and optimiser are built anew: frozen parameters have
    neither gradient nor optimiser state, and parameters that stay keep their moments and master weights to the bit.
    """

    def __init__(self, config: RunConfig, tokens: TokenCounts, topology: Topology) -> None:
        self.config, self.topology = config, topology
        if topology.device.type == "cuda":
            start_user_buffers(config)
        self.chunks = build_chunks(config, tokens, topology)
        self.ddp: list[DataParallel] = []
        self.optimizer: Optimizer
        self.stage = -1
        self.updates = UpdateCount()
        #: fp64 scalar that the coming step's gradients are divided by, summed over data-parallel ranks; the last pipeline
        #: stage's counts. None: the number of labels, as megatron-core counts them
        self.label_total: Tensor | None = None
        self._encoding: StepEncoding | None = None
        self.graphs = LayerGraphs(config.performance.cuda_graphs != "none")

    def enter_stage(self, stage: int, anew: bool = False) -> bool:
        """Returns whether DDP and optimiser were built: other parameters are trained, or `anew` asked for it."""
        if stage == self.stage and not anew:
            return False
        freeze = self.config.curriculum.stages[stage].freeze
        same = self.ddp and not anew and set(freeze) == set(self.config.curriculum.stages[self.stage].freeze)
        self.stage = stage
        if same:
            return False
        carried = read_state(self.optimizer, self.ddp) if self.ddp else {}
        labels = self.optimizer.labels if self.ddp else {}
        ages = {name: self.updates.age(label) for name, label in labels.items()}
        self._release()
        for chunk in self.chunks:
            for local, parameter in chunk.named_parameters():
                parameter.requires_grad_(is_trained(global_name(local, parameter), freeze, self.config))
        self._wrap()
        self.updates.ages = self._ages(ages)
        # what is new begins with moments of zero, so that a checkpoint can be written before its first update
        write_state(self.optimizer, self.ddp, carried)
        self.optimizer.set_count(self.updates)
        return True

    def _ages(self, before: dict[str, int]) -> dict[str, int]:
        """Of the groups of all ranks, from the ages that parameters had `before`. The oldest counts, where a curriculum that
        was changed puts parameters of different ages into one group."""
        mine: dict[str, int] = {}
        for name, label in self.optimizer.labels.items():
            mine[label] = max(mine.get(label, 0), before.get(name, 0))
        of_all: list[dict[str, int]] = [{} for _ in range(self.topology.world_size)]
        dist.all_gather_object(of_all, mine)
        labels = sorted({label for ages in of_all for label in ages})
        return {label: max(ages.get(label, 0) for ages in of_all) for label in labels}

    def _release(self) -> None:
        """Let the old DDP, its buffers and the optimiser go.

        megatron-core hangs gradient hooks on autograd's node of each parameter, and an fp32 distributed optimiser keeps
        that node alive by views of the parameter: a second DDP over the same objects would run both sets of hooks. So the
        parameters are laid into new objects over the same storage.
        """
        self.graphs.forget()
        for ddp in self.ddp:
            if getattr(ddp, "use_forward_hook", False) and ddp.remove_forward_pre_hook_handles:
                ddp.disable_forward_pre_hook()  # waits for parameters in flight
            ddp.grad_accs.clear()
            for name in ("grad_scale_func", "no_sync_func", "grad_sync_func"):
                setattr(ddp.config, name, None)
        if self.ddp:
            del self.optimizer
            self.ddp = []
            for chunk in self.chunks:
                _renew_parameters(chunk)
        gc.collect()

    def _wrap(self) -> None:
        parallel = self.config.parallel
        ddp_config = DistributedDataParallelConfig(
            grad_reduce_in_fp32=True,
            overlap_grad_reduce=parallel.overlap_grad_reduce,
            overlap_param_gather=parallel.overlap_param_gather,
            use_distributed_optimizer=parallel.use_distributed_optimizer,
            average_in_collective=False,
        )
        self.ddp = [
            DataParallel(
                chunk.config,
                ddp_config,
                chunk,
                unwrap(chunk).picture_parameters(),
                # buckets of later chunks are reduced with the first one's, as in megatron-core's own trainer
                disable_bucketing=number > 0,
            )
            for number, chunk in enumerate(self.chunks)
        ]
        self.optimizer = Optimizer(self.config, self.ddp)
        self._hook_schedule()

    def _hook_schedule(self) -> None:
        """What megatron-core's schedules call during a step hangs on the transformer configuration."""
        parallel = self.config.parallel
        single = len(self.ddp) == 1
        for chunk in self.ddp:
            core = chunk.config
            core.finalize_model_grads_func = self._finalize_gradients
            core.grad_scale_func = self.optimizer.scale_loss
            core.timers = None
            if parallel.overlap_grad_reduce:
                core.no_sync_func = self.ddp[0].no_sync if single else [c.no_sync for c in self.ddp]
                core.grad_sync_func = None

    def begin_step(self, positions: int, micro_batches: int) -> None:
        """Before a step's first forward pass, of pictures too: gradients of zero, graphs of its shape, and the gathers of
        what the last update changed (`DataParallel.begin_gathers`). `positions` of a micro-batch, on all of its ranks."""
        self.graphs.before_step(self.ddp, self.optimizer.core, positions // self.topology.context_size, micro_batches)
        self.zero_grad()
        for chunk in self.ddp:
            chunk.begin_gathers()
            chunk.train()

    def encode_ahead(self, batches: Sequence[MicroBatch]) -> list[Tensor | None]:
        """Rows of each micro-batch's pictures where all stages encode a step's pictures before its first micro-batch; else a
        None for each."""
        self._encoding = None
        if self.config.parallel.vision != "data_all_stages":
            return [None] * len(batches)
        self._encoding = StepEncoding(unwrap(self.chunks[0]), batches, self.topology.on_first_stage)
        return list(self._encoding.rows)

    def _finalize_gradients(self, model: list[Any], num_tokens: Tensor | None = None, **options: Any) -> None:
        if self._encoding is not None:
            # stages own different parts of the sums over data-parallel ranks: theirs is made before
            self._encoding.backward()
            self._encoding.sum_gradients()
            self._encoding = None
        for chunk in self.ddp:
            chunk.finish_gathers()
            chunk.reduce_late()
        finalize_model_grads(model, num_tokens if self.label_total is None else self.label_total, **options)
        if self.config.parallel.vision == "data_first_stage" and self.topology.on_first_stage:
            # last, so that overlapped reduction has ended; all tensor-parallel ranks own the same parts
            group = parallel_state.get_tensor_model_parallel_group()
            sum_gradients(unwrap(self.chunks[0]).picture_parameters(), group)

    def zero_grad(self) -> None:
        for chunk in self.ddp:
            chunk.zero_grad_buffer()
        self.optimizer.zero_grad()

    @property
    def forward_chunks(self) -> Sequence[torch.nn.Module]:
        return self.ddp or self.chunks

    @contextmanager
    def whole_parameters(self) -> Iterator[None]:
        """Inside, every parameter is up to date and no gather is in flight: for checkpoints and evaluation.

        Matrix products of a forward pass in here are in bf16 also where training steps have theirs in FP8, which wants
        numbers of rows that scored documents do not come in.
        """
        hooked = [c for c in self.ddp if getattr(c, "use_forward_hook", False) and c.remove_forward_pre_hook_handles]
        for chunk in hooked:
            chunk.disable_forward_pre_hook()
        with without_fp8(self.chunks):
            try:
                yield
            finally:
                for chunk in hooked:
                    chunk.enable_forward_pre_hook()
