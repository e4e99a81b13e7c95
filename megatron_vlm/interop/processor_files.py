"""How pictures become pixels, as `transformers`' processors do it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from megatron_vlm.config.model import ModelConfig
from megatron_vlm.config.pictures import PicturesConfig
from megatron_vlm.data import atomic_file

_BICUBIC = 3  # PIL.Image.Resampling.BICUBIC
_PROCESSORS = {"siglip": "SiglipImageProcessor", "clip": "CLIPImageProcessor", "dinov2": "BitImageProcessor"}


def image_processor(model: ModelConfig, pictures: PicturesConfig) -> dict[str, Any]:
    """preprocessor_config.json: scaled to the encoder's square, as in training (`squash` or `centre_crop`)."""
    vision, side = model.vision, model.vision.image_size
    square = {"height": side, "width": side}
    cropped = pictures.resize == "centre_crop"
    return {
        "image_processor_type": _PROCESSORS[vision.kind] if not cropped else "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": side} if cropped else square,
        "resample": _BICUBIC,
        "do_center_crop": cropped,
        **({"crop_size": square} if cropped or vision.kind != "siglip" else {}),
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(vision.pixel_mean),
        "image_std": list(vision.pixel_std),
    }


def processor_note(pictures: PicturesConfig) -> str | None:
    """What a standard processor does otherwise than training did; None where nothing."""
    if pictures.resize in ("squash", "centre_crop"):
        return None
    return (
        f"Training put pictures into the encoder's square by `{pictures.resize}`, which no standard processor does; that of "
        f"this folder squashes both sides to it."
    )


def patches_note(model: ModelConfig, pictures: PicturesConfig, image_token: str) -> str:
    """How pictures become the inputs of a class that takes patches, for which there is no processor of ours."""
    vision = model.vision
    side, patch, rows = vision.image_size, vision.patch_size, model.image_tokens
    return (
        f"There is no processor in this folder, since the class's own keeps a picture's shape. Put a picture into the "
        f"encoder's square of {side} x {side} pixels (training: `{pictures.resize}`), bring pixels to 0 to 1, take off the "
        f"mean {list(vision.pixel_mean)} and divide by {list(vision.pixel_std)}. Cut it into patches of {patch} x {patch} "
        f"pixels, row by row, channels last in each: `pixel_values` [1, {vision.patches}, {3 * patch**2}], "
        f"`spatial_shapes` [[{vision.grid}, {vision.grid}]], `pixel_attention_mask` of ones. In the text it is "
        f"`{image_token}`, {rows} times."
    )


def size_note(trained: ModelConfig, own: ModelConfig) -> str | None:
    """Where the last stage showed pictures of another size than the encoder's own; None where it did not."""
    size, before = trained.vision.image_size, own.vision.image_size
    if size == before:
        return None
    return (
        f"Pictures are {size} pixels a side, as in the last stage that was trained; the encoder's positions are "
        f"interpolated to it from those of {before}."
    )


def write_processor(folder: Path, model: ModelConfig, pictures: PicturesConfig, image_token: str) -> None:
    """Both files of a LlavaProcessor."""
    atomic_file.write_text(
        folder / "preprocessor_config.json", json.dumps(image_processor(model, pictures), indent=2) + "\n"
    )
    prefix = model.vision.prefix_tokens
    processor = {
        "processor_class": "LlavaProcessor",
        "image_token": image_token,
        "patch_size": model.vision.patch_size,
        "num_additional_image_tokens": prefix,
        "vision_feature_select_strategy": "default" if prefix else "full",
    }
    atomic_file.write_text(folder / "processor_config.json", json.dumps(processor, indent=2) + "\n")
