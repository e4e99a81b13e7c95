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
    made = {
        "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**TEXT, rope_parameters=rope)),
        "llama3": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**TEXT, rope_parameters=llama3, tie_word_embeddings=True)),
        "qwen2": lambda: hf.Qwen2ForCausalLM(hf.Qwen2Config(**TEXT)),
        "qwen3": lambda: hf.Qwen3ForCausalLM(hf.Qwen3Config(**TEXT, head_dim=24)),
        "mistral": lambda: hf.MistralForCausalLM(hf.MistralConfig(**TEXT, sliding_window=None, head_dim=32)),
    }
    return made[case]()


CASES = ("llama", "llama3", "qwen2", "qwen3", "mistral")
