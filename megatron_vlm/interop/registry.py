"""The families that are known, by the model_type of their config.json."""

from __future__ import annotations

from megatron_vlm.config.model import LanguageConfig, VisionConfig
from megatron_vlm.interop.families import (
    clip,
    dinov2,
    gemma,
    gpt_neox,
    llama,
    mistral,
    olmo,
    olmo2,
    open_lm,
    qwen2,
    qwen3,
    siglip,
    stablelm,
)
from megatron_vlm.interop.mapping import LanguageFamily, Unexpressed, VisionFamily

LANGUAGE: dict[str, LanguageFamily] = {
    family.model_type: family
    for family in (
        llama.FAMILY,
        qwen2.FAMILY,
        qwen3.FAMILY,
        mistral.FAMILY,
        gemma.FAMILY,
        gpt_neox.FAMILY,
        stablelm.FAMILY,
        olmo2.FAMILY,
        open_lm.FAMILY,
        olmo.FAMILY,  # after stablelm: it holds gains of one alone
    )
}
VISION: dict[str, VisionFamily] = {
    family.model_type: family for family in (siglip.FAMILY, clip.FAMILY, dinov2.FAMILY, dinov2.WITH_REGISTERS)
}
#: model types of whole models whose picture tower is taken, and of towers whose names are another's
TOWERS: dict[str, str] = {
    "siglip": "siglip_vision_model",
    "siglip2": "siglip_vision_model",
    "clip": "clip_vision_model",
}
#: model types that are refused for a reason that is known; others are refused as unknown
REFUSED: dict[str, str] = {
    **gemma.REFUSED,
    **olmo2.REFUSED,
    "siglip2_vision_model": "SigLIP 2 in native resolution (NaFlex) takes pictures of any shape; its fixed-resolution "
    "checkpoints have the model_type siglip and are taken",
    "qwen2_moe": "the model has no mixture of experts",
    "qwen3_moe": "the model has no mixture of experts",
    "mixtral": "the model has no mixture of experts",
    "olmoe": "the model has no mixture of experts",
}


def language_for(language: LanguageConfig, rows: int, wanted: str | None = None) -> LanguageFamily:
    """The family that a language model is written as: `wanted`, or the first that can say it.

    Raises Unexpressed with the reason of each.
    """
    if wanted is not None and wanted not in LANGUAGE:
        raise Unexpressed(f"--family {wanted}: known are {', '.join(LANGUAGE)}")
    reasons = []
    for family in [LANGUAGE[wanted]] if wanted else LANGUAGE.values():
        try:
            family.write(language, rows)
        except Unexpressed as reason:
            reasons.append(str(reason))
        else:
            return family
    raise Unexpressed("no family of transformers says this language model:\n" + "\n".join(f"  - {r}" for r in reasons))


def vision_for(vision: VisionConfig) -> VisionFamily:
    """The family that an encoder is written as."""
    name = {"siglip": "siglip_vision_model", "clip": "clip_vision_model", "dinov2": "dinov2"}[vision.kind]
    return VISION[name + ("_with_registers" if vision.register_tokens else "")]
