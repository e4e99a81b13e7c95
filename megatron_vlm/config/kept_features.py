"""Features of a frozen encoder, kept in files: in which stages they are read, and what a file must have been made with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from megatron_vlm.config.curriculum import StageConfig
    from megatron_vlm.config.run import RunConfig


def vision_is_frozen(stage: StageConfig) -> bool:
    """Whether no parameter of the encoder is trained in the stage."""
    return any("vision.".startswith(entry) for entry in stage.freeze)


def stages_with_features(config: RunConfig) -> tuple[bool, ...]:
    """Of each stage, whether it reads `data.features`: those before the first that trains the encoder.

    Afterwards the encoder is another one, and no file that there was at the run's start can be of it.
    """
    found: list[bool] = []
    for stage in config.curriculum.stages:
        before = not found or found[-1]
        found.append(bool(config.data.features) and before and vision_is_frozen(stage))
    return tuple(found)


def stages_that_decode(config: RunConfig) -> list[str]:
    """Names of the stages that do not read `data.features`, though there are some: the encoder is, or was, trained."""
    reads = stages_with_features(config) if config.data.features else ()
    return [stage.name for stage, features in zip(config.curriculum.stages, reads, strict=False) if not features]


def feature_settings(config: RunConfig, image_size: int, fold: int) -> dict[str, Any]:
    """What of a configuration a picture's features depend on, besides the encoder's weights, as plain values.

    Args:
        image_size: side of the pictures in pixels.
        fold: patches of a side that become one row: the projector's pixel-shuffle times image_pool. It changes the shapes
            of pictures that keep their aspect, and no others.
    """
    pictures = config.data.pictures
    settings: dict[str, Any] = {}
    for name, encoder in zip(("model.vision", "model.vision_second"), config.model.encoders, strict=False):
        fields = {**asdict(encoder), "ffn_hidden_size": encoder.ffn_width}
        settings |= {f"{name}.{field}": list(v) if isinstance(v, tuple) else v for field, v in fields.items()}
    settings["model.projector.pixel_shuffle"] = config.model.projector.pixel_shuffle  # the order of the patches
    settings["data.pictures.resize"] = pictures.resize
    if pictures.resize == "letterbox":
        settings["data.pictures.padding"] = pictures.padding
    settings["image_size"] = image_size
    if pictures.resize == "native":
        settings["pixel_shuffle x image_pool"] = fold
    return settings


def feature_problems(config: RunConfig) -> Iterator[str]:
    """Files of sources that there are not."""
    for name in config.data.features:
        if name not in config.data.sources:
            known = ", ".join(config.data.sources) or "none"
            yield f"data.features.{name}: not one of data.sources ({known}); leave it out"
