"""The time of a step: passes, idle time, what of the exchanges does not hide, the update."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from megatron_vlm.config.run import RunConfig
from megatron_vlm.config.steps import StepShape
from megatron_vlm.planning.activations import Kernels, value_bytes
from megatron_vlm.planning.communication import gathered
from megatron_vlm.planning.efficiency import Efficiency
from megatron_vlm.planning.hardware import Hardware
from megatron_vlm.planning.layout import Layout
from megatron_vlm.planning.parameters import rank_trained_parameters
from megatron_vlm.planning.pipeline_simulator import Times, span
from megatron_vlm.planning.stage_work import PipelineWork, pipeline_work
from megatron_vlm.planning.work_clock import Clock, Work


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step. `work` is a step's passes through the busiest stage; the parts sum to `seconds`."""

    work: Work
    #: encoding that is spread over all ranks and done outside of the pipeline's passes
    encoding: float
    #: the busiest stage waits for others
    bubble: float
    #: reductions of gradients and gathers of weights that nothing hides
    data_exchange: float
    optimizer: float
    overhead: float
    pipeline: PipelineWork
    micro_batches: int

    @property
    def seconds(self) -> float:
        return self.work.total + self.encoding + self.bubble + self.data_exchange + self.optimizer + self.overhead

    def parts(self) -> dict[str, float]:
        """What it goes to, in words."""
        work = self.work
        return {
            "language matrices": work.matrices,
            "attention": work.attention,
            "norms, activations, residuals": work.streaming,
            "tensor-parallel exchange": work.exchange,
            "context-parallel exchange": work.context,
            "output layer and loss": work.head,
            "pictures": work.encoder + self.encoding,
            "idle in the pipeline": self.bubble,
            "data-parallel exchange": self.data_exchange,
            "update": self.optimizer,
            "around the step": self.overhead,
        }


def step_time(
    config: RunConfig,
    vocab_size: int,
    layout: Layout,
    shape: StepShape,
    pictures: float,
    lengths: Iterable[int],
    hardware: Hardware,
    efficiency: Efficiency,
    frozen: Iterable[str] = (),
    kernels: Kernels = "fused",
    spanned: Callable[[Times, int], float] = span,
) -> StepTime:
    """A step of `shape` whose micro-batches have `pictures` (a mean) and documents of `lengths`.

    `spanned` may be `least_span`, for a bound instead of a simulation.
    """
    frozen = set(frozen)
    work = pipeline_work(config, vocab_size, layout, shape, pictures, lengths, hardware, efficiency, frozen, kernels)
    count = max(1, shape.global_batch_size // (shape.micro_batch_size * layout.data))
    times, busiest = work.times, work.busiest()
    passes = work.of_stage(busiest) * count
    clock = Clock(layout, hardware, efficiency)
    # the heaviest stage: the one with the embedding and the encoder, or the one with the output layer
    trained = max(
        rank_trained_parameters(config.model, vocab_size, layout, stage, frozen) for stage in {0, layout.pipeline - 1}
    )
    reduced, spread = _data_exchange(layout, trained, clock, hardware.gpus_per_node)
    hides_reduction = efficiency.overlap * sum(times.backward[busiest]) if layout.overlap_grad_reduce else 0.0
    hides_gather = efficiency.overlap * sum(times.forward[busiest]) if layout.overlap_param_gather else 0.0
    exchange = max(0.0, reduced - hides_reduction) + max(0.0, spread - hides_gather)
    # gradient, copy and two moments are read, all but the gradient written, and the weight
    updated = trained / (layout.replicas if layout.distributed_optimizer else 1)
    update = clock.stream(updated * (28 + value_bytes(layout.precision))) + clock.stream(trained * 4.0)
    return StepTime(
        passes,
        work.before + work.after,
        max(0.0, spanned(times, count) - passes.total),
        exchange,
        update,
        efficiency.step_overhead,
        work,
        count,
    )


def _data_exchange(layout: Layout, trained: int, clock: Clock, gpus_per_node: int) -> tuple[float, float]:
    """Seconds of the reduction of fp32 gradients and of the gather of weights, on the stage that has most. Context-parallel
    ranks take part, as data-parallel ones that have the same weights and saw other positions."""
    if layout.replicas == 1 or not trained:
        return 0.0, 0.0
    latency = clock.efficiency.node_latency * layout.replicas / layout.replicas_in_node(gpus_per_node)
    one = gathered(trained * 4.0, layout.replicas) / clock.links.data + latency
    if not layout.distributed_optimizer:
        return 2 * one, 0.0
    return one, gathered(trained * float(value_bytes(layout.precision)), layout.replicas) / clock.links.data + latency
