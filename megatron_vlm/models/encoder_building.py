"""The vision encoder that a configuration asks for: one, or two side by side."""

from __future__ import annotations

from typing import Any

from megatron.core.process_groups_config import ProcessGroupCollection

from megatron_vlm.config.run import RunConfig
from megatron_vlm.models.block_options import language_options, vision_options
from megatron_vlm.models.specs import choose_layer_spec
from megatron_vlm.models.transformer_configs import vision_config
from megatron_vlm.models.vision import VisionEncoder


def build_encoder(
    config: RunConfig,
    device_type: str,
    groups: ProcessGroupCollection | None = None,
    language: dict[str, Any] | None = None,
) -> VisionEncoder:
    """The encoder of a run, on no device yet.

    Args:
        groups: None: its layers are split as megatron-core splits the language's; of one rank: whole.
        language: what `language_options` said; None: asked for here.
    """
    model, parallel = config.model, config.parallel
    spec = choose_layer_spec(config, device_type)
    options = vision_options(config, language or language_options(config, spec, device_type))
    group, native = model.projector.pixel_shuffle, config.data.pictures.resize == "native"
    second = None
    if model.vision_second is not None:
        own = vision_config(model, parallel, device_type, model.vision_second, options)
        second = VisionEncoder(model.vision_second, own, spec, group, native, groups=groups)
    first = vision_config(model, parallel, device_type, options=options)
    return VisionEncoder(model.vision, first, spec, group, native, second, groups)
