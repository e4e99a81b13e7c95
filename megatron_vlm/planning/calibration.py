"""Factors of efficiency fitted to a run of one's own, from its metrics.jsonl."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from megatron_vlm.config.run import RunConfig
from megatron_vlm.errors import DataError
from megatron_vlm.planning.efficiency import Efficiency, efficiency_of
from megatron_vlm.planning.estimate import padded_vocab
from megatron_vlm.planning.hardware import Hardware
from megatron_vlm.planning.layout import Layout, layout_of
from megatron_vlm.planning.run_stretches import Stretch
from megatron_vlm.planning.step_time import step_time

#: steps left out where a run or a stage begins: kernels are chosen and memory is taken there
_WARM_UP = 5
#: the least factor that is tried: a run on the host comes to about a millionth of a GPU
_LEAST = 1e-8


@dataclass(frozen=True)
class Measured:
    """Steps of one shape as a run made them: the median of their seconds without waiting for data, and mean pictures."""

    stretch: Stretch
    seconds: float
    steps: int


@dataclass(frozen=True)
class Calibration:
    """`before` and `after`: predicted seconds of each of `measured`, with the fitted factors of others and with its own."""

    efficiency: Efficiency
    measured: tuple[Measured, ...]
    before: tuple[float, ...]
    after: tuple[float, ...]


def read_measured(path: Path, config: RunConfig, document_length: float | None = None) -> list[Measured]:
    """The steps of a run's metrics.jsonl by their shape in `config`, and by whether they had pictures.

    Raises:
        DataError: no file, no line of a training step in it, or steps beyond the configuration's run.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}; give the metrics.jsonl of a run") from None
    groups: dict[tuple[int, bool], list[dict[str, float]]] = {}
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue  # the half line of a run that was killed
        if not isinstance(record, dict) or record.get("kind") != "train":
            continue
        if not 0 <= record["step"] < config.total_steps:
            raise DataError(
                f"{path}: step {record['step']} is not in the configuration's run of {config.total_steps} steps; give the "
                f"config.yaml that lies beside it"
            )
        segment = config.segments.index(config.segment_of(int(record["step"])))
        groups.setdefault((segment, record["pictures"] > 0), []).append(record)
    measured = [_of(config, segment, records, document_length) for (segment, _), records in groups.items()]
    if not measured:
        raise DataError(f"{path}: no line of a training step in it; give the metrics.jsonl of a run")
    return measured


def _of(config: RunConfig, segment: int, records: list[dict[str, float]], document_length: float | None) -> Measured:
    shape = config.segments[segment].shape
    stage = config.curriculum.stages[shape.stage]
    warm = records[_WARM_UP:] if len(records) > 2 * _WARM_UP else records[len(records) // 2 :]
    pictures = sum(record["pictures"] for record in warm) / len(warm)
    share = pictures * shape.image_tokens / (shape.global_batch_size * shape.sequence_length)
    stretch = Stretch(stage.name, shape, len(warm), share, document_length, tuple(stage.freeze))
    seconds = median(record["seconds"] - record.get("data_wait_seconds", 0.0) for record in warm)
    return Measured(stretch, max(seconds, 1e-9), len(warm))


def calibrate(
    measured: Sequence[Measured],
    config: RunConfig,
    hardware: Hardware,
    gpus: int,
    vocab_size: int,
    *,
    precision: str | None = None,
) -> Calibration:
    """Fit the factor of matrix products to steps without pictures, then the encoder's to steps with them.

    Where all steps have pictures both factors move together: one number cannot tell two apart. The others stay.
    """
    start = efficiency_of(hardware.name)
    layout = layout_of(config, gpus, precision)
    padded = padded_vocab(config, vocab_size)

    def seconds(one: Measured, efficiency: Efficiency) -> float:
        return _predicted(one.stretch, config, layout, padded, hardware, efficiency)

    def off(chosen: Sequence[Measured]) -> Callable[[Efficiency], float]:
        total = sum(one.seconds * one.steps for one in chosen)
        return lambda efficiency: sum(seconds(one, efficiency) * one.steps for one in chosen) - total

    name = "matrix_fp8" if layout.precision == "fp8" else "matrix"
    plain = [one for one in measured if one.stretch.visual_share == 0]
    seeing = [one for one in measured if one.stretch.visual_share > 0]
    fitted = start
    if plain:
        fitted = _fit(lambda factor: replace(fitted, **{name: factor}), off(plain))
        kept = fitted
        if seeing:
            fitted = _fit(lambda factor: replace(kept, vision=factor), off(seeing))
    else:
        ratio = start.vision / getattr(start, name)
        fitted = _fit(lambda factor: replace(start, **{name: factor}, vision=min(1.0, factor * ratio)), off(seeing))
    return Calibration(
        fitted,
        tuple(measured),
        tuple(seconds(one, start) for one in measured),
        tuple(seconds(one, fitted) for one in measured),
    )


def _fit(of: Callable[[float], Efficiency], off: Callable[[Efficiency], float]) -> Efficiency:
    """The factor at which predictions sum to what was measured, by bisection; a bound where none does."""
    low, high = _LEAST, 1.0
    for _ in range(50):
        middle = (low * high) ** 0.5
        if off(of(middle)) > 0:  # predicted slower than it was: the factor is higher
            low = middle
        else:
            high = middle
    return of((low * high) ** 0.5)


def _predicted(
    stretch: Stretch, config: RunConfig, layout: Layout, vocab_size: int, hardware: Hardware, efficiency: Efficiency
) -> float:
    packs = stretch.shape.micro_batch_size
    return step_time(
        config,
        vocab_size,
        layout,
        stretch.shape,
        stretch.pictures(packs),
        stretch.lengths(packs),
        hardware,
        efficiency,
        stretch.frozen,
    ).seconds
