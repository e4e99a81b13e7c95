"""A folder of another project's weights, opened: which family it is of, what it means here, and its tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from megatron_vlm.config.model import LanguageConfig, ModelConfig, ProjectorConfig, VisionConfig
from megatron_vlm.errors import DataError
from megatron_vlm.interop import registry
from megatron_vlm.interop.families import lfm2_vl, llava, open_lm
from megatron_vlm.interop.mapping import LanguageFamily, TensorMapping, Unexpressed
from megatron_vlm.interop.model_tensors import WORDS
from megatron_vlm.interop.tensor_folder import TensorFolder, read_json

#: heads of names that a tower has where it was saved as a part of something
_TOWER_PREFIXES = ("vision_model.", "dinov2.", "dinov2_with_registers.")


@dataclass(frozen=True)
class Source:
    """What a folder holds of a model; None for what it does not hold. `rows`: of its vocabulary, 0 without one."""

    where: Path
    model_type: str
    tensors: TensorFolder
    mapping: TensorMapping
    language: LanguageConfig | None = None
    vision: VisionConfig | None = None
    projector: ProjectorConfig | None = None
    rows: int = 0


def open_source(where: Path) -> Source:
    """
    Raises:
        DataError: no config.json or no weights, or they are damaged.
        Unexpressed: a family that is not known, or that this project's model cannot express; says why.
    """
    config = read_json(where / "config.json")
    kind = open_lm.MODEL_TYPE if open_lm.is_open_lm(config) else str(config.get("model_type", ""))
    if kind == llava.MODEL_TYPE:
        return _llava(where, config)
    if kind == lfm2_vl.MODEL_TYPE:
        return _lfm2_vl(where, config)
    if kind in registry.LANGUAGE:
        return _language(where, kind, config)
    tower = registry.TOWERS.get(kind, kind)
    if tower in registry.VISION:
        return _vision(where, tower, config)
    raise unknown(where, kind)


def unknown(where: Path, kind: str) -> Unexpressed:
    if kind in registry.REFUSED:
        return Unexpressed(f"{where}: {kind} is refused: {registry.REFUSED[kind]}")
    known = ", ".join([*registry.LANGUAGE, *registry.VISION, *registry.TOWERS, llava.MODEL_TYPE, lfm2_vl.MODEL_TYPE])
    return Unexpressed(f"{where}: model_type {kind!r} is not known; known are {known}")


def _named(where: Path, read: Callable[[Mapping[str, Any]], Any], config: Mapping[str, Any]) -> Any:
    try:
        return read(config)
    except Unexpressed as reason:
        raise Unexpressed(f"{where}: {reason}") from None
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{where / 'config.json'}: does not say what its family's does ({error!r})") from None


def _rows(family: LanguageFamily, language: LanguageConfig, tensors: TensorFolder, prefix: str = "") -> int:
    """Rows of the embedding as it is: config.json is often silent, or speaks of another number."""
    table = next(e.theirs[0] for e in family.mapping(language, 1).entries if e.ours.endswith("word_embeddings.weight"))
    shape = tensors.shapes.get(prefix + table)
    if shape is None:
        raise DataError(f"{tensors.where}: {prefix + table} is missing, the table of word embeddings")
    return shape[0]


def _language(where: Path, kind: str, config: Mapping[str, Any]) -> Source:
    family = registry.LANGUAGE[kind]
    language = _named(where, family.read, config)
    base = family.base_prefix

    def rename(name: str) -> str:
        """A model without its head is saved without the head's prefix."""
        return name if name.startswith((base, *family.head_names)) else base + name

    tensors = TensorFolder(where, rename)
    rows = _rows(family, language, tensors)
    return Source(where, kind, tensors, family.mapping(language, rows), language=language, rows=rows)


def _vision_config(where: Path, kind: str, config: Mapping[str, Any]) -> VisionConfig:
    vision: VisionConfig = _named(where, registry.VISION[kind].read, {**config, "model_type": kind})
    preprocessor = where / "preprocessor_config.json"
    if preprocessor.is_file():
        values = read_json(preprocessor)
        mean, std = (values.get(name) for name in ("image_mean", "image_std"))
        if isinstance(mean, list) and isinstance(std, list) and len(mean) == len(std) == 3:
            red, green, blue = ((float(m), float(s)) for m, s in zip(mean, std, strict=True))
            vision = replace(vision, pixel_mean=(red[0], green[0], blue[0]), pixel_std=(red[1], green[1], blue[1]))
    return vision


def _vision(where: Path, kind: str, config: Mapping[str, Any]) -> Source:
    vision = _vision_config(where, kind, config.get("vision_config") or config)

    def rename(name: str) -> str:
        return next((name.removeprefix(prefix) for prefix in _TOWER_PREFIXES if name.startswith(prefix)), name)

    return Source(where, kind, TensorFolder(where, rename), registry.VISION[kind].mapping(vision), vision=vision)


def _halves(where: Path, config: Mapping[str, Any]) -> tuple[str, dict[str, Any], str, dict[str, Any]]:
    """model_type and fields of the decoder and of the tower."""
    text, picture = config.get("text_config"), config.get("vision_config")
    if not isinstance(text, dict) or not isinstance(picture, dict):
        raise DataError(f"{where / 'config.json'}: no text_config and vision_config in it; save it anew with transformers")
    kind = str(text.get("model_type", "llama"))
    tower = str(picture.get("model_type", "clip_vision_model"))
    if kind not in registry.LANGUAGE:
        raise unknown(where, kind)
    if registry.LANGUAGE[kind].base_prefix != "model.":
        raise Unexpressed(f"{where}: a {kind} inside a vision-language model has names that are not known; give it alone")
    if "tie_word_embeddings" not in text and "tie_word_embeddings" in config:
        text = {**text, "tie_word_embeddings": config["tie_word_embeddings"]}
    return kind, text, tower, picture


def _lfm2_vl(where: Path, config: Mapping[str, Any]) -> Source:
    kind, text, tower, picture = _halves(where, config)
    if tower != lfm2_vl.TOWER:
        raise unknown(where, tower)
    family = registry.LANGUAGE[kind]
    language = _named(where, family.read, text)
    plain = _vision_config(where, "siglip_vision_model", picture)
    vision, projector = _named(where, lambda c: lfm2_vl.read(c, plain), config)
    tensors = TensorFolder(where)
    model = ModelConfig(language, vision, projector)
    table = next(e for e in lfm2_vl.mapping(model, family.mapping(language, 1)).entries if e.ours == WORDS).theirs[0]
    if table not in tensors.shapes:
        raise DataError(f"{where}: {table} is missing, the table of word embeddings")
    rows = tensors.shapes[table][0]
    mapping = lfm2_vl.mapping(model, family.mapping(language, rows))
    return Source(where, lfm2_vl.MODEL_TYPE, tensors, mapping, language, vision, projector, rows)


def _llava(where: Path, config: Mapping[str, Any]) -> Source:
    kind, text, tower, picture = _halves(where, config)
    if tower not in registry.VISION:
        raise unknown(where, tower)
    family = registry.LANGUAGE[kind]
    language = _named(where, family.read, text)
    vision = _vision_config(where, tower, picture)
    vision = _named(where, lambda c: llava.features(c, vision), config)
    projector = _named(where, llava.read_projector, config)
    tensors = TensorFolder(where, llava.spelling)
    rows = _rows(family, language, tensors, "language_model.")
    model = ModelConfig(language, vision, projector)
    mapping = llava.mapping(model, family.mapping(language, rows), registry.VISION[tower].mapping(vision))
    return Source(where, llava.MODEL_TYPE, tensors, mapping, language, vision, projector, rows)
