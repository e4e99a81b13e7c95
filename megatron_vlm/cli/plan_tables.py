"""The plan of a run on GPUs as text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from megatron_vlm.planning.text_table import human, table

if TYPE_CHECKING:
    from megatron_vlm.config.run import RunConfig
    from megatron_vlm.planning.calibration import Calibration
    from megatron_vlm.planning.estimate import Estimate
    from megatron_vlm.planning.layout_search import SearchResult
    from megatron_vlm.planning.published import Comparison
    from megatron_vlm.planning.published_fastest import Fastest
    from megatron_vlm.planning.remedies import Remedy

_GIGA = 1e9


def length_of(seconds: float) -> str:
    if seconds >= 2 * 86400:
        return f"{seconds / 86400:.1f} days"
    return f"{seconds / 3600:.1f} hours" if seconds >= 2 * 3600 else f"{seconds / 60:.0f} minutes"


def describe_parameters(plan: Estimate, vocab_size: int) -> str:
    from megatron_vlm.planning.estimate import padded_vocab
    from megatron_vlm.planning.parameters import layer_updates, total_parameters

    model = plan.config.model
    counts = total_parameters(model, padded_vocab(plan.config, vocab_size))
    words = ", ".join(f"{name} {human(count)}" for name, count in counts.items())
    if not model.lora.rank:
        return words
    updates = human(layer_updates(model).total * model.language.num_layers)
    return f"{words}; of language only its low-rank updates are trained, {updates}"


def describe_estimate(plan: Estimate, vocab_size: int, price: float | None) -> Iterator[str]:
    """FLOPs, memory by stage, a step's time and the whole run."""
    layout, hardware = plan.layout, plan.hardware
    yield f"{plan.gpus:,} x {hardware.name}: {layout}, {layout.precision}, micro-batches of {_micro(plan)}"
    yield f"parameters: {describe_parameters(plan, vocab_size)}"
    yield ""
    head = ["a step", "packs x length", "pictures", "model FLOPs", "recomputed", "seconds", "tokens/s", "MFU", "steps"]
    rows = [head]
    peak = hardware.peak_of(layout.precision) * plan.gpus
    for part in plan.stretches:
        shape = part.stretch.shape
        rows.append(
            [
                part.stretch.name,
                f"{shape.global_batch_size} x {shape.sequence_length}",
                f"{part.stretch.pictures(shape.global_batch_size):.0f}",
                human(part.model_flops),
                human(part.recomputed_flops),
                f"{part.time.seconds:.3f}",
                human(part.tokens_per_second),
                f"{part.model_flops / part.time.seconds / peak:.1%}",
                f"{part.stretch.steps:,.0f}",
            ]
        )
    yield from table(rows)
    yield ""
    names = [part.stretch.name for part in plan.stretches]
    rows = [["milliseconds of a step", *names]]
    parts = [part.time.parts() for part in plan.stretches]
    rows += [[word, *(f"{one[word] * 1e3:.1f}" for one in parts)] for word in parts[0]]
    yield from table(rows)
    yield ""
    yield from describe_memory(plan)
    yield ""
    yield from describe_run(plan, price)


def _micro(plan: Estimate) -> str:
    sizes = sorted({part.stretch.shape.micro_batch_size for part in plan.stretches})
    return " or ".join(map(str, sizes))


def describe_memory(plan: Estimate) -> Iterator[str]:
    """By stage; stages in the middle that are alike share a line."""
    memory = plan.memory_by_stage
    rows = [["GB of a rank", *memory[0].items(), "total"]]
    first = 0
    while first < len(memory):
        last = first
        while last + 1 < len(memory) and memory[last + 1].items() == memory[first].items():
            last += 1
        name = f"stage {first}" if first == last else f"stages {first} to {last}"
        values = [*memory[first].items().values(), memory[first].total]
        rows.append([name, *(f"{value / _GIGA:.2f}" for value in values)])
        first = last + 1
    yield from table(rows)
    room = plan.hardware.memory * plan.hardware.usable_memory / _GIGA
    most = plan.most_memory
    if plan.fits:
        yield f"Fits: stage {most.stage} needs {most.total / _GIGA:.1f} of {room:.1f} GB that are usable."
    else:
        largest = max(most.items(), key=lambda name: most.items()[name])
        yield (
            f"DOES NOT FIT: stage {most.stage} needs {most.total / _GIGA:.1f} of {room:.1f} GB that are usable; most of it "
            f"is {largest}."
        )


def describe_run(plan: Estimate, price: float | None) -> Iterator[str]:
    yield (
        f"The run: {plan.steps:,.0f} steps, {human(plan.tokens)} positions, {human(plan.model_flops)} model FLOPs in "
        f"{length_of(plan.seconds)}: {human(plan.tokens_per_second)} tokens/s, MFU {plan.model_flops_utilisation:.1%}, "
        f"{plan.gpu_hours:,.0f} GPU-hours" + (f", {plan.cost(price):,.0f} at {price:g} a GPU-hour." if price else ".")
    )


def describe_remedies(found: list[Remedy]) -> Iterator[str]:
    if not found:
        yield (
            "No change of recomputation, micro-batch, tensor, context or pipeline size makes it fit; plan search tries all "
            "layouts."
        )
        return
    yield "Nearest that fits:"
    for remedy in found:
        plan = remedy.estimate
        yield (
            f"  {' '.join(remedy.overrides)}   {plan.most_memory.total / _GIGA:.1f} GB, {human(plan.tokens_per_second)} "
            f"tokens/s, {length_of(plan.seconds)}"
        )


def describe_search(result: SearchResult, price: float | None) -> Iterator[str]:
    rows = [["", "layout", "micro", "GB", "tokens/s", "MFU", "days", "GPU-hours", *(["cost"] if price else [])]]
    for place, plan in enumerate(result.best):
        layout = plan.layout
        ends = f", layers {layout.first_layers} .. {layout.last_layers}" if layout.first_layers is not None else ""
        row = [
            str(place + 1),
            f"{layout}{ends}",
            _micro(plan),
            f"{plan.most_memory.total / _GIGA:.1f}",
            human(plan.tokens_per_second),
            f"{plan.model_flops_utilisation:.1%}",
            f"{plan.days:.2f}",
            f"{plan.gpu_hours:,.0f}",
        ]
        rows.append([*row, f"{plan.cost(price):,.0f}"] if price else row)
    widest = max(len(row[1]) for row in rows)
    for row in rows:
        row[1] = row[1].ljust(widest)
    yield from table(rows)
    yield f"{result.tried:,} layouts tried, {result.too_large:,} of them too large for the memory."


def overrides_of(plan: Estimate, given: RunConfig) -> list[str]:
    """What turns the given configuration into the plan's, as `megatron-vlm train` takes it."""
    from dataclasses import fields

    words = []
    parts = [(name, getattr(plan.config, name), getattr(given, name)) for name in ("schedule", "parallel")]
    stages = zip(plan.config.curriculum.stages, given.curriculum.stages, strict=True)
    parts += [(f"curriculum.stages.{number}", *both) for number, both in enumerate(stages)]
    for section, wanted, had in parts:
        for field in fields(wanted):
            value = getattr(wanted, field.name)
            if value != getattr(had, field.name):
                words.append(f"--{section}.{field.name} {'null' if value is None else str(value).lower()}")
    return words


def describe_published(compared: list[Comparison]) -> Iterator[str]:
    rows = [["source", "model", "GPUs", "layout", "published s", "predicted s", "error"]]
    for one in compared:
        run, layout = one.run, one.run.layout
        sizes = f"tp {layout.tensor} pp {layout.pipeline} vp {layout.virtual}"
        gpus = f"{layout.gpus} {run.gpu}"
        rows.append([run.source, run.name, gpus, sizes, f"{run.seconds:.2f}", f"{one.predicted:.2f}", f"{one.error:+.1%}"])
    yield from table(rows)
    errors = [abs(one.error) for one in compared]
    yield f"{len(errors)} runs: mean error {sum(errors) / len(errors):.1%}, largest {max(errors):.1%}."


def describe_fastest(compared: list[Fastest]) -> Iterator[str]:
    rows = [["layouts not told", "model", "GPUs", "fastest found", "published s", "predicted s", "error"]]
    for one in compared:
        gpus = f"{one.found.gpus} {one.found.hardware.name}"
        seconds = f"{one.seconds:.2f}", f"{one.found.step_seconds:.2f}"
        rows.append([one.source, one.name, gpus, str(one.found.layout), *seconds, f"{one.error:+.1%}"])
    yield from table(rows)


def describe_calibration(found: Calibration) -> Iterator[str]:
    rows = [["steps", "number", "measured ms", "factors of others", "own factors", "error left"]]
    for one, before, after in zip(found.measured, found.before, found.after, strict=True):
        name = one.stretch.name + (", with pictures" if one.stretch.visual_share else "")
        rows.append(
            [
                name,
                str(one.steps),
                f"{one.seconds * 1e3:.1f}",
                f"{before * 1e3:.1f}",
                f"{after * 1e3:.1f}",
                f"{after / one.seconds - 1:+.1%}",
            ]
        )
    yield from table(rows)
    fitted = found.efficiency
    yield f"matrix {fitted.matrix:.3g}, matrix_fp8 {fitted.matrix_fp8:.3g}, vision {fitted.vision:.3g} of the peak"


def as_json(plan: Estimate, price: float | None, given: RunConfig) -> dict[str, Any]:
    """Numbers in seconds, bytes and operations."""
    layout = plan.layout
    return {
        "gpus": plan.gpus,
        "gpu": plan.hardware.name,
        "layout": {
            "tensor": layout.tensor,
            "context": layout.context,
            "pipeline": layout.pipeline,
            "virtual": layout.virtual,
            "data": layout.data,
            "sequence_parallel": layout.sequence_parallel,
            "recompute": layout.recompute,
            "vision": layout.vision,
            "precision": layout.precision,
            "first_layers": layout.first_layers,
            "last_layers": layout.last_layers,
        },
        "overrides": overrides_of(plan, given),
        "fits": plan.fits,
        "usable_memory": plan.hardware.memory * plan.hardware.usable_memory,
        "memory_by_stage": [{**memory.items(), "total": memory.total} for memory in plan.memory_by_stage],
        "seconds": plan.seconds,
        "days": plan.days,
        "gpu_hours": plan.gpu_hours,
        "cost": plan.cost(price) if price else None,
        "tokens": plan.tokens,
        "tokens_per_second": plan.tokens_per_second,
        "step_seconds": plan.step_seconds,
        "model_flops": plan.model_flops,
        "model_flops_utilisation": plan.model_flops_utilisation,
        "stretches": [
            {
                "name": part.stretch.name,
                "steps": part.stretch.steps,
                "micro_batch_size": part.stretch.shape.micro_batch_size,
                "visual_share": part.stretch.visual_share,
                "pictures_a_step": part.stretch.pictures(part.stretch.shape.global_batch_size),
                "step_seconds": part.time.seconds,
                "tokens_per_second": part.tokens_per_second,
                "model_flops": part.model_flops,
                "recomputed_flops": part.recomputed_flops,
                "parts": part.time.parts(),
            }
            for part in plan.stretches
        ],
    }
