"""What is wrong with FP8 in a configuration, whatever the chip; `precision.chip_problem` asks that."""

from __future__ import annotations

from collections.abc import Iterator

from megatron_vlm.config.nearest import nearest_multiple
from megatron_vlm.config.precision import BLOCK
from megatron_vlm.config.run import RunConfig
from megatron_vlm.config.shape_checks import micro_batches


def precision_problems(config: RunConfig) -> Iterator[str]:
    """Every reason why FP8 as it is asked for cannot run, each with the field and the nearest value that works."""
    precision, parallel = config.precision, config.parallel
    if precision.fp8 == "none":
        for name in ("first_layers_in_bf16", "last_layers_in_bf16", "fp8_vision"):
            if getattr(precision, name):
                yield f"precision.{name}: without precision.fp8 everything is in bf16; choose a recipe, or leave it out"
        return
    where = f"precision.fp8: {precision.fp8}"
    if parallel.layer_spec == "host":
        yield (
            f"{where} needs Transformer Engine's layers, and parallel.layer_spec is host; set that to auto, or "
            f"precision.fp8 to none"
        )
    if parallel.device == "cpu":
        yield f"{where} needs a GPU, and parallel.device is cpu; set precision.fp8 to none"
    if parallel.precision == "fp32":
        yield f"{where} goes beside bf16, and parallel.precision is fp32; set that to auto or bf16"
    yield from _layers_in_bf16(config)
    yield from _sizes(config)
    if precision.fp8_vision:
        yield from _vision_sizes(config)


def _layers_in_bf16(config: RunConfig) -> Iterator[str]:
    precision = config.precision
    most = config.model.language.num_layers // config.parallel.pipeline_model_parallel_size
    for name in ("first_layers_in_bf16", "last_layers_in_bf16"):
        layers = getattr(precision, name)
        if layers and precision.fp8 == "delayed":
            yield (
                f"precision.{name}: delayed scaling gathers its scales once for all layers and leaves none out; set it to "
                f"0, or precision.fp8 to current"
            )
        elif layers > most:
            yield f"precision.{name}: {layers} must be from 0 to {most}, the layers of a pipeline stage"


def _sizes(config: RunConfig) -> Iterator[str]:
    """Matrices of the language blocks, a tensor-parallel rank's part, and rows that they are multiplied with."""
    language, parallel, recipe = config.model.language, config.parallel, config.precision.fp8
    tp, block = parallel.tensor_model_parallel_size, BLOCK[recipe]
    heads, groups, head = language.num_attention_heads, language.query_groups, language.head_dim
    sides = {
        "model.language.hidden_size": (language.hidden_size, 1),
        "model.language.ffn_hidden_size": (language.ffn_width, tp),
        "model.language.num_attention_heads (x size of a head)": (heads * head, tp),
        "model.language.num_query_groups (queries, keys and values)": ((heads + 2 * groups) * head, tp),
    }
    for name, (size, split) in sides.items():
        if size % (block * split):
            yield _not_a_multiple(name, size, block, split, recipe)
    split = parallel.position_ranks
    kind = "tensor-parallel" if parallel.context_parallel_size == 1 else "tensor- and context-parallel"
    for where, micro, length in micro_batches(config):
        if micro * length % (block * split):
            yield _not_a_multiple(f"{where}.sequence_length", length, block, split, recipe, kind)


def _not_a_multiple(name: str, size: int, block: int, split: int, recipe: str, kind: str = "tensor-parallel") -> str:
    ranks = f" on each of {split} {kind} ranks" if split > 1 else ""
    return (
        f"{name}: {size} is no multiple of {block}{ranks}, which precision.fp8 {recipe} needs; nearest that is: "
        f"{nearest_multiple(block * split, size)}, or set precision.fp8 to none"
    )


def _vision_sizes(config: RunConfig) -> Iterator[str]:
    recipe, tp = config.precision.fp8, config.parallel.tensor_model_parallel_size
    block = BLOCK[recipe]
    if config.data.pictures.resize == "native":
        yield (
            "precision.fp8_vision: pictures of any shape (data.pictures.resize native) give any number of rows, and FP8 "
            f"needs a multiple of {block}; set it to false"
        )
        return
    second = () if config.model.vision_second is None else (("model.vision_second", config.model.vision_second),)
    for where, vision in (("model.vision", config.model.vision), *second):
        for name, size, split in (
            ("hidden_size", vision.hidden_size, tp),
            ("ffn_hidden_size", vision.ffn_width, tp),
        ):
            if size % (block * split):
                yield _not_a_multiple(f"{where}.{name}", size, block, split, recipe)
        sizes = {stage.image_size or vision.image_size for stage in config.curriculum.stages} or {vision.image_size}
        for size in sorted(sizes):
            rows = (size // vision.patch_size) ** 2 + vision.prefix_tokens
            if rows % block:
                yield (
                    f"precision.fp8_vision: a picture of {size} pixels is {rows} rows of {where}, no multiple of {block}; "
                    f"set it to false, and the encoder stays in bf16"
                )
