"""A tiny random model of each language family, by our name of the case."""

from __future__ import annotations

from typing import Any

from tests.interop.oracles import TEXT


def build(case: str) -> Any:
    """A *ForCausalLM, not yet randomized."""
    import transformers as hf

    rope = {"rope_type": "default", "rope_theta": 50000.0}
    llama3 = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    neox = {name: value for name, value in TEXT.items() if name != "num_key_value_heads"}
    made = {
        "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**TEXT, rope_parameters=rope)),
        "llama3": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**TEXT, rope_parameters=llama3, tie_word_embeddings=True)),
        "qwen2": lambda: hf.Qwen2ForCausalLM(hf.Qwen2Config(**TEXT)),
        "qwen3": lambda: hf.Qwen3ForCausalLM(hf.Qwen3Config(**TEXT, head_dim=24)),
        "gpt_neox": lambda: hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**neox)),
        "gpt_neox_sequential": lambda: hf.GPTNeoXForCausalLM(
            hf.GPTNeoXConfig(
                **neox,
                use_parallel_residual=False,
                hidden_act="gelu_pytorch_tanh",
                rope_parameters={**rope, "partial_rotary_factor": 0.5},
            )
        ),
        "gemma": lambda: hf.GemmaForCausalLM(hf.GemmaConfig(**TEXT, head_dim=24)),
        "olmo": lambda: hf.OlmoForCausalLM(hf.OlmoConfig(**TEXT, clip_qkv=None)),
        "olmo2": lambda: hf.Olmo2ForCausalLM(hf.Olmo2Config(**TEXT)),
        "stablelm": lambda: hf.StableLmForCausalLM(hf.StableLmConfig(**TEXT, use_qkv_bias=True)),
        "stablelm_heads": lambda: hf.StableLmForCausalLM(hf.StableLmConfig(**TEXT, qk_layernorm=True)),
        "mistral": lambda: hf.MistralForCausalLM(hf.MistralConfig(**TEXT, sliding_window=None, head_dim=32)),
    }
    return made[case]()


CASES = (
    "llama",
    "llama3",
    "qwen2",
    "qwen3",
    "mistral",
    "gemma",
    "olmo",
    "olmo2",
    "gpt_neox",
    "gpt_neox_sequential",
    "stablelm",
    "stablelm_heads",
)
