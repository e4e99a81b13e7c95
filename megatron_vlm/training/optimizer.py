"""megatron-core's optimiser over groups that know their module, and the carrying of its state over a stage border."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer, get_megatron_optimizer
from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.optimizer.optimizer_config import OptimizerConfig as CoreOptimizerConfig
from megatron.core.optimizer.optimizer_config import ParamKey, ParamWithNamePredicate

from megatron_vlm.config.run import RunConfig
from megatron_vlm.training.parameter_groups import (
    bias_correction_factor,
    global_name,
    group_label,
    labelled,
    no_weight_decay,
    plain_name,
)
from megatron_vlm.training.updates import UpdateCount


class Optimizer:
    """AdamW of megatron-core (distributed or not), one group for each module, training pattern and weight-decay rule."""

    def __init__(self, config: RunConfig, chunks: Sequence[DistributedDataParallel]) -> None:
        self.config = config
        names = (global_name(name, p) for chunk in chunks for name, p in chunk.named_parameters() if p.requires_grad)
        #: global name of each parameter that this rank trains -> label of its group
        self.labels = {name: group_label(name, config) for name in names}
        self.core: MegatronOptimizer = _build(config, chunks, set(self.labels.values()))
        self._own_keys = [{k: group[k] for k in ("label", "wd_mult", "lr_mult")} for group in self.groups]

    @property
    def inner(self) -> MegatronOptimizer:
        """The one optimiser in megatron-core's chain (there would be a second one for experts)."""
        return self.core.chained_optimizers[0]

    @property
    def groups(self) -> list[dict[str, Any]]:
        return self.inner.param_groups

    def prepare(self, learning_rate: float, updates: UpdateCount) -> None:
        """Set every group's learning rate and weight decay for the update that comes after `updates`."""
        adam = self.config.optimizer
        self.set_count(updates)
        for group in self.groups:
            age = updates.age(group["label"]) + 1
            factor = bias_correction_factor(updates.made + 1, age, adam.adam_beta1, adam.adam_beta2)
            group["lr"] = learning_rate * group["lr_mult"] * factor
            # the decay of a step is learning rate x weight decay: the correction is for the moments alone
            group["weight_decay"] = adam.weight_decay * group["wd_mult"] / factor

    def set_count(self, updates: UpdateCount) -> None:
        """The kernels' count of updates, which is of all groups and ranks alike: whether a rank has something to update
        depends on the layout, and checkpoints keep one rank's count."""
        for group in self.groups:
            if group["params"]:
                group["step"] = updates.made

    @contextmanager
    def leaving_out(self, modules: Sequence[str]) -> Iterator[None]:
        """Inside, a step leaves these modules as they are: no decay of weights or moments by gradients of zero."""
        put_aside = []
        for group in self.groups:
            if group["label"].split(":")[0] in modules:
                put_aside.append((group, group["params"]))
                group["params"] = []
        try:
            yield
        finally:
            for group, params in put_aside:
                group["params"] = params

    def step(self, allowed: Callable[[float], bool]) -> tuple[bool, float]:
        """Clip and update, if `allowed(gradient norm)`. Returns (whether the update was made, norm before clipping).

        The parts of megatron-core's own step, with a question between the norm and what changes anything: without the
        update, parameters, moments and step count keep their bits. `allowed` must say the same on every rank.
        """
        if self.core.prepare_grads():  # a loss scale that overflowed
            return False, float("inf")
        norm = float(self.core.get_grad_norm() or 0.0)
        if not allowed(norm):
            return False, norm
        for optimizer in self.core.chained_optimizers:
            parameters = [] if getattr(optimizer, "is_stub_optimizer", False) else optimizer.get_parameters()
            if parameters and self.config.optimizer.clip_grad > 0:
                decoupled = optimizer.config.use_precision_aware_optimizer_no_fp8_or_ds_fp8
                clip_grad_by_total_norm_fp32(parameters, self.config.optimizer.clip_grad, norm, decoupled)
        return bool(self.core.step_with_ready_grads()), norm

    def zero_grad(self) -> None:
        self.core.zero_grad()

    def scale_loss(self, loss: torch.Tensor) -> torch.Tensor:
        return self.core.scale_loss(loss)

    def sharded_state_dict(self, model: dict[str, Any], is_loading: bool, metadata: dict[str, Any]) -> Any:
        return self.core.sharded_state_dict(model, is_loading=is_loading, metadata=metadata)

    def load_state_dict(self, state: Any) -> None:
        # megatron-core finds a saved group by its multipliers, which several of ours share; 0.19 by learning rates too, that
        # a run may change and nothing reads here. Groups come in the same order at save and load: number them
        content = state.get("optimizer", state)
        content.setdefault("state", {})  # left out where this rank trains nothing
        saved = content.get("param_groups", [])
        for group in saved:
            group.update(max_lr=self.config.schedule.lr, min_lr=self.config.schedule.min_lr)
        if len(saved) == len(self.groups):
            for number, (group, own) in enumerate(zip(saved, self.groups, strict=True)):
                own["lr_mult"] = group["lr_mult"] = number
                group["wd_mult"] = own["wd_mult"]
        self.core.load_state_dict(state)
        # each its own keys back
        for group, own in zip(self.groups, self._own_keys, strict=True):
            group.update(own)


def _build(config: RunConfig, chunks: Sequence[DistributedDataParallel], labels: set[str]) -> MegatronOptimizer:
    adam, parallel, schedule = config.optimizer, config.parallel, config.schedule
    dtype = next(iter(chunks[0].parameters())).dtype
    core = CoreOptimizerConfig(
        optimizer="adam",
        lr=schedule.lr,
        min_lr=schedule.min_lr,
        weight_decay=adam.weight_decay,
        adam_beta1=adam.adam_beta1,
        adam_beta2=adam.adam_beta2,
        adam_eps=adam.adam_eps,
        clip_grad=adam.clip_grad,
        bf16=dtype is torch.bfloat16,
        params_dtype=dtype,
        use_distributed_optimizer=parallel.use_distributed_optimizer,
        overlap_param_gather=parallel.overlap_param_gather,
    )
    overrides: dict[ParamKey, Any] = {
        ParamKey(with_name_predicate=ParamWithNamePredicate(name="no_decay", fn=no_weight_decay)): {"wd_mult": 0.0}
    }
    for label in sorted(labels):
        key = ParamKey(with_name_predicate=ParamWithNamePredicate(name=label, fn=labelled(config, label)))
        overrides[key] = {"label": label, "lr_mult": adam.lr_mult.get(label.split(":")[0], 1.0)}
    return get_megatron_optimizer(core, list(chunks), config_overrides=overrides)


ParameterState = dict[str, dict[str, torch.Tensor]]


def _named_trainable(chunks: Sequence[DistributedDataParallel]) -> Iterator[tuple[str, torch.nn.Parameter]]:
    for number, chunk in enumerate(chunks):
        for name, parameter in chunk.named_parameters():
            if parameter.requires_grad:
                yield f"{number}.{plain_name(name)}", parameter


def read_state(optimizer: Optimizer, chunks: Sequence[DistributedDataParallel]) -> ParameterState:
    """Whole `param`, `exp_avg`, `exp_avg_sq` of every trained parameter of this rank, fp32 on the CPU.

    The distributed optimiser's shards are put together over the data-parallel group, one parameter at a time.
    """
    inner, state = optimizer.inner, {}
    for name, parameter in _named_trainable(chunks):
        if isinstance(inner, DistributedOptimizer):
            tensors = _gather(inner, parameter)
        else:
            main = getattr(parameter, "main_param", parameter)
            kept = inner.optimizer.state.get(main, {}) if inner.optimizer is not None else {}
            tensors = {k: kept[k].detach().clone().cpu() for k in ("exp_avg", "exp_avg_sq") if k in kept}
            tensors["param"] = main.detach().clone().cpu()
        state[name] = tensors
    return state


def _owned_range(inner: DistributedOptimizer, parameter: torch.nn.Parameter) -> Any:
    """The part `[start, end)` of the flat parameter that this data-parallel rank owns, or None."""
    try:
        return inner._get_model_param_range_map(parameter)["param"]
    except KeyError:
        return None


def _gather(inner: DistributedOptimizer, parameter: torch.nn.Parameter) -> dict[str, torch.Tensor]:
    owned = _owned_range(inner, parameter)
    shards = inner._get_main_param_and_optimizer_states(parameter) if owned is not None else {}
    group = parallel_state.get_data_parallel_group(with_context_parallel=True)
    whole = {}
    for key in ("param", "exp_avg", "exp_avg_sq"):
        flat = torch.zeros(parameter.numel(), dtype=torch.float32, device=parameter.device)
        if owned is not None and key in shards:
            flat[owned.start : owned.end] = shards[key]
        dist.all_reduce(flat, group=group)  # a sum with zeros: the owner's bits
        whole[key] = flat.view(parameter.shape).cpu()
    return whole


@torch.no_grad()
def write_state(optimizer: Optimizer, chunks: Sequence[DistributedDataParallel], state: ParameterState) -> None:
    """Give the parameters named in `state` their old moments and master weights; others begin with moments of zero. The
    count of updates is to be set by `Optimizer.set_count`."""
    inner = optimizer.inner
    if getattr(inner, "is_stub_optimizer", False):
        return
    if isinstance(inner, DistributedOptimizer):
        for group in optimizer.groups:
            group["lr"] = 0.0  # the call below allocates moments by a step, which must not decay the weights
        inner._init_optimizer_states_with_dummy_values()
    for name, parameter in _named_trainable(chunks):
        old = state.get(name)
        if isinstance(inner, DistributedOptimizer):
            owned = _owned_range(inner, parameter)
            if owned is None:
                continue
            shards = inner._get_main_param_and_optimizer_states(parameter)
            for key, shard in shards.items():
                if key in ("exp_avg", "exp_avg_sq"):
                    shard.zero_()
                if old is not None and key in old:
                    shard.copy_(old[key].flatten()[owned.start : owned.end])
        else:
            main = getattr(parameter, "main_param", parameter)
            kept = inner.optimizer.state[main]
            for key in ("exp_avg", "exp_avg_sq"):
                kept[key] = torch.zeros_like(main)
                if old is not None and key in old:
                    kept[key].copy_(old[key])
            if old is not None and main is not parameter:
                main.copy_(old["param"])
