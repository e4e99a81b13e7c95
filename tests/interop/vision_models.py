"""Tiny random encoders and vision-language models, by our name of the case."""

from __future__ import annotations

from typing import Any

from tests.interop.oracles import PICTURE, TEXT

TOWERS = ("siglip", "clip", "dinov2", "dinov2_registers", "dinov2_gated")
#: name -> encoder, language family, vision_feature_layer
LLAVAS = {
    "siglip_llama": ("siglip", "llama", -1),
    "siglip_qwen2_inner": ("siglip", "qwen2", -2),
    "clip_llama": ("clip", "llama", -2),
    "clip_mistral": ("clip", "mistral", 2),
    "dinov2_llama": ("dinov2", "llama", -1),
}
IMAGE_TOKEN = 148  # of `oracles.small_tokenizer`


def tower_config(case: str) -> Any:
    import transformers as hf

    wide = {**PICTURE, "intermediate_size": 64}
    return {
        "siglip": lambda: hf.SiglipVisionConfig(**wide),
        "clip": lambda: hf.CLIPVisionConfig(**wide),
        "dinov2": lambda: hf.Dinov2Config(**PICTURE, mlp_ratio=2),
        "dinov2_registers": lambda: hf.Dinov2WithRegistersConfig(**PICTURE, mlp_ratio=2, num_register_tokens=2),
        "dinov2_gated": lambda: hf.Dinov2Config(**PICTURE, mlp_ratio=4, use_swiglu_ffn=True),
    }[case]()


def tower(case: str) -> Any:
    from transformers import AutoModel

    return AutoModel.from_config(tower_config(case))


def llava(case: str) -> Any:
    import transformers as hf

    picture, text, layer = LLAVAS[case]
    languages = {"llama": hf.LlamaConfig, "qwen2": hf.Qwen2Config, "mistral": hf.MistralConfig}
    config = hf.LlavaConfig(
        vision_config=tower_config(picture),
        text_config=languages[text](**TEXT, **({"sliding_window": None} if text == "mistral" else {})),
        image_token_index=IMAGE_TOKEN,
        vision_feature_layer=layer,
        vision_feature_select_strategy="full" if picture == "siglip" else "default",
    )
    return hf.LlavaForConditionalGeneration(config)
