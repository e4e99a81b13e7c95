"""LFM2-VL's frame around any decoder: SigLIP with its last norm, patches folded, two matrices with a GELU between them.

It is the class in which transformers can hold what LLaVA cannot: features after the encoder's last norm, and pixel-shuffle.
Its tower is SigLIP 2's, which is SigLIP over patches that are flattened with their channels last.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from megatron_vlm.config.model import ModelConfig, ProjectorConfig, VisionConfig
from megatron_vlm.interop.families import siglip
from megatron_vlm.interop.layouts import Same, Shape
from megatron_vlm.interop.mapping import Entry, LanguageFamily, TensorMapping, refuse

MODEL_TYPE, ARCHITECTURE = "lfm2_vl", "Lfm2VlForConditionalGeneration"
TOWER = "siglip2_vision_model"
_LANGUAGE, _TOWER, _PROJECTOR = "model.language_model.", "model.vision_tower.", "model.multi_modal_projector."


@dataclass(frozen=True)
class ChannelsLast:
    """A matrix over flattened patches: ours goes channel by channel, theirs pixel by pixel."""

    rows: int
    patch: int

    @property
    def ours(self) -> Shape:
        return (self.rows, 3 * self.patch**2)

    @property
    def theirs(self) -> tuple[Shape, ...]:
        return (self.ours,)

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        return parts[0].view(self.rows, self.patch**2, 3).transpose(1, 2).reshape(self.ours)

    def split(self, whole: Tensor) -> list[Tensor]:
        return [whole.view(self.rows, 3, self.patch**2).transpose(1, 2).reshape(self.ours)]


def problems(model: ModelConfig) -> list[str]:
    """Why a model is none of these; empty where it is one."""
    found = []
    if model.vision.kind != "siglip":
        found.append(f"model.vision.kind is {model.vision.kind}, and its tower is SigLIP's")
    if not model.vision.final_norm:
        found.append("model.vision.final_norm is false, and it takes features after that norm")
    if model.projector.kind != "mlp2":
        found.append(f"model.projector.kind is {model.projector.kind}, and its projector has two matrices")
    return found


def read(config: Mapping[str, Any], vision: VisionConfig) -> tuple[VisionConfig, ProjectorConfig]:
    """Raises Unexpressed where the projector has a norm, as LFM2-VL's own has."""
    act = config.get("projector_hidden_act", "gelu")
    patches = int(config["vision_config"].get("num_patches", 256))
    grid = int(patches**0.5)
    refuse(
        MODEL_TYPE,
        [
            "projector_use_layernorm: its projector has a norm" if config.get("projector_use_layernorm", True) else "",
            f"projector_hidden_act {act!r}, not gelu" if act != "gelu" else "",
            "projector_bias is false" if not config.get("projector_bias", True) else "",
            f"num_patches {patches} is no square grid" if grid * grid != patches else "",
        ],
    )
    projector = ProjectorConfig("mlp2", int(config["projector_hidden_size"]), int(config.get("downsample_factor", 2)))
    return replace(vision, image_size=grid * vision.patch_size, final_norm=True), projector


def write(model: ModelConfig, language: LanguageFamily, rows: int, image_token: int) -> dict[str, Any]:
    refuse(MODEL_TYPE, problems(model))
    tower = siglip.write(model.vision)
    del tower["image_size"]
    tied = not model.language.untie_embeddings
    return {
        "image_token_id": image_token,
        "downsample_factor": model.projector.pixel_shuffle,
        "projector_hidden_act": "gelu",
        "projector_hidden_size": model.projector.hidden_size or model.language.hidden_size,
        "projector_bias": True,
        "projector_use_layernorm": False,
        "tie_word_embeddings": tied,
        "text_config": {"model_type": language.model_type, **language.write(model.language, rows)},
        "vision_config": {"model_type": TOWER, **tower, "num_patches": model.vision.patches},
    }


def mapping(model: ModelConfig, language: TensorMapping) -> TensorMapping:
    """`language`: of the *ForCausalLM, whose names are the decoder's under `model.` and its head's."""
    hidden = model.vision.hidden_size
    tower = siglip.mapping(model.vision)
    patches = Entry(
        "vision.patch_embedding.weight",
        ("embeddings.patch_embedding.weight",),
        ChannelsLast(hidden, model.vision.patch_size),
    )
    entries = tuple(patches if e.ours == patches.ours else e for e in tower.entries)
    width = model.projector.hidden_size or model.language.hidden_size
    projector = []
    into = hidden * model.projector.pixel_shuffle**2
    for ours, theirs, shape in (
        ("linear_fc1", "linear_1", (width, into)),
        ("linear_fc2", "linear_2", (model.language.hidden_size, width)),
    ):
        there = f"{_PROJECTOR}{theirs}"
        projector += [
            Entry(f"projector.{ours}.weight", (f"{there}.weight",), Same(shape)),
            Entry(f"projector.{ours}.bias", (f"{there}.bias",), Same(shape[:1])),
        ]
    return _renamed(language).joined(replace(tower, entries=entries).prefixed(_TOWER), TensorMapping(tuple(projector)))


def _renamed(language: TensorMapping) -> TensorMapping:
    def there(name: str) -> str:
        head, base, rest = name.partition("model.")
        return _LANGUAGE + rest if base and not head else name

    return TensorMapping(
        tuple(replace(e, theirs=tuple(there(name) for name in e.theirs)) for e in language.entries),
        language.ignored,
        {there(name): value for name, value in language.filled.items()},
    )
