"""The files of features that a run reads, refused at its start where they are not of its datasets and settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from megatron_vlm.config.curriculum_checks import stage_path
from megatron_vlm.config.kept_features import feature_settings
from megatron_vlm.config.run import RunConfig
from megatron_vlm.config.steps import StepShape
from megatron_vlm.data.documents import DocumentSource
from megatron_vlm.data.kept_features.feature_facts import FeatureFacts, differences
from megatron_vlm.data.kept_features.feature_reader import FeatureReader
from megatron_vlm.errors import DataError


def open_features(config: RunConfig, sources: Mapping[str, DocumentSource]) -> dict[str, FeatureFacts]:
    """Facts of the files that the run's stages read, by the name of their source. The encoder's weights are not compared.

    Raises:
        DataError: a source with pictures has no features in a stage that reads some, or they are of another dataset,
            encoder configuration or size of pictures.
    """
    found: dict[str, FeatureFacts] = {}
    for shape in dict.fromkeys(segment.shape for segment in config.segments if segment.shape.features):
        drawn = [name for name in _drawn(config, shape.stage) if name in sources and sources[name].has_pictures]
        for name in drawn:
            if name not in found:
                found[name] = _open(config, shape, name, sources[name])
            _compare(config, shape, name, found[name])
    return found


def _drawn(config: RunConfig, stage: int) -> Iterator[str]:
    """Sources that the stage draws from, at its start or at its end."""
    chosen = config.curriculum.stages[stage]
    ramp = config.curriculum.ramp_start(stage) if chosen.ramp != "constant" else {}
    yield from dict.fromkeys(name for name, weight in [*chosen.sources.items(), *ramp.items()] if weight > 0)


def _open(config: RunConfig, shape: StepShape, name: str, source: DocumentSource) -> FeatureFacts:
    prefix = config.data.features.get(name)
    if prefix is None:
        raise DataError(
            f"{stage_path(config, shape.stage)} reads data.features, and its source {name} has pictures and none; make "
            f"them: megatron-vlm encode {source.reader.prefix} --from CHECKPOINT, then --data.features.{name} PREFIX; "
            f"or leave data.features out"
        )
    facts = FeatureReader(prefix, source.reader).facts
    if facts.width != config.model.vision_width:
        raise DataError(
            f"{prefix}: {facts.width} features of a patch, and this model's encoder gives {config.model.vision_width}; "
            f"encode {source.reader.prefix} with it"
        )
    return facts


def _compare(config: RunConfig, shape: StepShape, name: str, facts: FeatureFacts) -> None:
    fold = config.model.projector.pixel_shuffle * shape.image_pool
    found = differences(facts, feature_settings(config, shape.image_size, fold))
    if found:
        raise DataError(
            f"{config.data.features[name]} does not fit {stage_path(config, shape.stage)}: it was made with "
            f"{', '.join(found)}; encode {config.data.sources[name]} again with this run's settings, or leave "
            f"data.features out"
        )
