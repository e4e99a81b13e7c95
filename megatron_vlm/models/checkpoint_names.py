"""What makes a checkpoint the same under every layer spec: which of a module's state stays out, and names of norms."""

from __future__ import annotations

from megatron_vlm.config.model import LanguageConfig

#: Transformer Engine keeps the norm before a matrix in the matrix's module; checkpoints have the names of the host's layers.
#: (megatron-core's own local layers map theirs the other way in the language blocks, so those need nothing.)
FUSED_NORMS = {
    "self_attention.linear_qkv.layer_norm_": "input_layernorm.",
    "mlp.linear_fc1.layer_norm_": "pre_mlp_layernorm.",
}


def held_at_zero(name: str, language: LanguageConfig) -> bool:
    """Norm biases of the language model under `layernorm_gain`: Transformer Engine's norms have one, which stays zero.

    Args:
        name: a parameter's, inside the model (`language_model.…`).
    """
    gain_only = language.normalization == "layernorm_gain"
    return gain_only and name.startswith("language_model.") and name.endswith(("norm_bias", "norm.bias"))


def is_extra_state(name: str) -> bool:
    """Transformer Engine's FP8 scales, by the name in a module's `state_dict`."""
    return name.endswith("_extra_state")


def left_out(name: str, language: LanguageConfig) -> bool:
    """Whether a checkpoint is without this entry of the model's state.

    Norm biases that are held at zero, and `_extra_state`: Transformer Engine's FP8 scales, which are a pickle that loading
    would run, and which every recipe but delayed finds anew at each product. Delayed scaling begins its history again.

    Args:
        name: in the model's `state_dict`.
    """
    return held_at_zero(name, language) or is_extra_state(name)
