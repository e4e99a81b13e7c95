"""Options of megatron-core that people look for here and do not find, with the reason and what there is instead."""

from __future__ import annotations

_GRAPHS = (
    "attention takes other documents in each micro-batch, which captured layers cannot; performance.cuda_graphs captures "
    "their feed-forward blocks"
)
_EIGHT_BITS = (
    "first weights, stage borders and checkpoints write into parameters part by part, which FP8 ones do not take; leave it "
    "out: precision.fp8 has matrix products in FP8 all the same"
)
_FSDP = "weights are split by tensor and pipeline parallelism, and optimiser state by parallel.use_distributed_optimizer"

#: name of a field, in any section -> why there is none, and what there is
NOT_OFFERED: dict[str, str] = {
    "cuda_graphs": _GRAPHS,
    "cuda_graph_impl": _GRAPHS,
    "enable_cuda_graph": _GRAPHS,
    "fp8_param": _EIGHT_BITS,
    "fp8_param_gather": _EIGHT_BITS,
    "fp8_parameters": _EIGHT_BITS,
    "use_megatron_fsdp": _FSDP,
    "fsdp": _FSDP,
}
