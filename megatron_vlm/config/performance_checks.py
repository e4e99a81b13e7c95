"""What is wrong with recomputation, offloading, overlap and fused kernels in a configuration."""

from __future__ import annotations

import math
from collections.abc import Iterator

from megatron_vlm.config.nearest import nearest_divisor
from megatron_vlm.config.run import RunConfig


def performance_problems(config: RunConfig) -> Iterator[str]:
    """Every reason why an option cannot run, each with the field and the nearest value that works."""
    yield from _recomputation(config)
    yield from _offloading(config)
    yield from _overlap(config)
    yield from _kernels(config)
    yield from _graphs(config)


def chunk_layers(config: RunConfig) -> list[int]:
    """Language layers of each pipeline chunk; a layout that does not go evenly, which is refused elsewhere, rounds down."""
    parallel, layers = config.parallel, config.model.language.num_layers
    pp, vp = parallel.pipeline_model_parallel_size, parallel.virtual_pipeline_model_parallel_size
    ends = [parallel.num_layers_in_first_pipeline_stage, parallel.num_layers_in_last_pipeline_stage]
    named = [count for count in ends if count is not None]
    others = pp - len(named)
    if others > 0:
        named += [(layers - sum(named)) // others] * others
    return [max(1, count // vp) for count in named]


def _recomputation(config: RunConfig) -> Iterator[str]:
    options, parallel, language = config.performance, config.parallel, config.model.language
    modules = options.recompute_modules
    if parallel.recompute == "selective":
        if not modules:
            yield (
                "performance.recompute_modules: name at least one of core_attn, layernorm, mlp, or set parallel.recompute "
                "to none"
            )
        if language.parallel_residual and set(modules) - {"core_attn"}:
            yield (
                "performance.recompute_modules: a layer with parallel_residual computes its attention alone again; set it "
                "to [core_attn], or parallel.recompute to full"
            )
        if "layernorm" in modules and parallel.layer_spec == "transformer_engine":
            yield (
                "performance.recompute_modules: Transformer Engine's norms are parts of the matrices and not computed "
                "again; leave layernorm out"
            )
    elif modules != ("core_attn",):
        yield f"performance.recompute_modules: needs parallel.recompute: selective, which is {parallel.recompute}"
    sizes = chunk_layers(config)
    if options.recompute_layers > min(sizes):
        yield (
            f"performance.recompute_layers: {options.recompute_layers} must be from 1 to {min(sizes)}, the language layers "
            f"of a pipeline chunk"
        )
    elif options.recompute_method == "uniform" and any(size % options.recompute_layers for size in sizes):
        nearest = nearest_divisor(math.gcd(*sizes), options.recompute_layers)
        yield (
            f"performance.recompute_layers: {options.recompute_layers} does not divide the "
            f"{' and '.join(map(str, sorted(set(sizes))))} language layers of a pipeline chunk, as recompute_method uniform "
            f"needs; nearest that does: {nearest}"
        )
    if (options.recompute_layers, options.recompute_method) != (1, "uniform") and parallel.recompute != "full":
        yield (
            f"performance.recompute_layers and recompute_method: need parallel.recompute: full, which is "
            f"{parallel.recompute}"
        )


def _offloading(config: RunConfig) -> Iterator[str]:
    layers, parallel = config.performance.cpu_offload_layers, config.parallel
    if layers == 0:
        return
    where, most = f"performance.cpu_offload_layers: {layers}", config.model.language.num_layers - 1
    if layers > most:
        yield f"{where} must be from 0 to {most}: the last layer's activations are needed at once"
    if parallel.pipeline_model_parallel_size > 1:
        yield f"{where}: megatron-core offloads without pipeline parallelism only; set it to 0, or use parallel.recompute"
    if parallel.recompute != "none":
        yield f"{where}: what is computed again is not kept; set it to 0, or parallel.recompute to none"
    yield from _needs_engine(config, where, "0")


def _overlap(config: RunConfig) -> Iterator[str]:
    parallel = config.parallel
    if not config.performance.tp_overlap:
        return
    where = "performance.tp_overlap"
    if parallel.tensor_model_parallel_size == 1 or not parallel.sequence_parallel:
        yield (
            f"{where}: overlaps what sequence parallelism sends; set parallel.sequence_parallel to true (TP above 1), or it "
            f"to false"
        )
    schedule = config.schedule
    rows = {
        (stage.micro_batch_size or schedule.micro_batch_size) * (stage.sequence_length or config.data.sequence_length)
        for stage in config.curriculum.stages
    }
    if len(rows) > 1:
        yield (
            f"{where}: its buffers are made for rows of one length, and stages have micro-batches of "
            f"{', '.join(map(str, sorted(rows)))} positions; set it to false, or micro_batch_size x sequence_length alike"
        )
    for field, there in (("evaluation.tasks", config.evaluation.tasks), ("data.validation", config.data.validation)):
        if there:
            yield (
                f"{where}: its buffers are made for training micro-batches, and what {field} scores is of other sizes; "
                f"leave {field} out and evaluate checkpoints (megatron-vlm evaluate), or set {where} to false"
            )
    yield from _needs_engine(config, where, "false")


def _kernels(config: RunConfig) -> Iterator[str]:
    options, parallel = config.performance, config.parallel
    if options.rope_fusion:
        yield from _needs_engine(config, "performance.rope_fusion", "null")
    if options.cross_entropy_fusion == "transformer_engine":
        yield from _needs_engine(config, "performance.cross_entropy_fusion", "native")
    if options.attention_backend != "auto":
        yield from _needs_engine(config, "performance.attention_backend", "auto")
    if options.gradient_accumulation_fusion and parallel.device == "cpu":
        yield "performance.gradient_accumulation_fusion: needs a GPU, and parallel.device is cpu; set it to null"
    if options.recompute_vision and all("vision" in stage.freeze for stage in config.curriculum.stages):
        yield (
            "performance.recompute_vision: the encoder is frozen in every stage and keeps no activations; set it to false"
        )


def _graphs(config: RunConfig) -> Iterator[str]:
    parallel, language = config.parallel, config.model.language
    if config.performance.cuda_graphs == "none":
        return
    where = f"performance.cuda_graphs: {config.performance.cuda_graphs}"
    if parallel.recompute == "full" or (parallel.recompute == "selective" and "mlp" in config.performance.recompute_modules):
        yield (
            f"{where}: what is captured is kept, not computed again; set it to none, or parallel.recompute to selective "
            f"with performance.recompute_modules [core_attn]"
        )
    if config.performance.cpu_offload_layers:
        yield f"{where}: captured activations do not leave the GPU; set it to none, or cpu_offload_layers to 0"
    if language.parallel_residual:
        yield f"{where}: a layer with parallel_residual computes its blocks as one; set it to none"
    if language.dropout:
        yield f"{where}: dropout inside of a graph is not offered; set it to none, or model.language.dropout to 0"
    if parallel.precision == "fp32":
        yield f"{where}: captures blocks in bf16, and parallel.precision is fp32; set it to none"
    yield from _needs_engine(config, where, "none")


def _needs_engine(config: RunConfig, where: str, nearest: str) -> Iterator[str]:
    parallel = config.parallel
    if parallel.layer_spec == "host" or parallel.device == "cpu":
        reason = "parallel.layer_spec is host" if parallel.layer_spec == "host" else "parallel.device is cpu"
        yield f"{where}: is Transformer Engine's, and {reason}; set it to {nearest}"
