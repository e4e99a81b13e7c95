"""What of a language model's variants cannot run, or would not be what it says."""

from __future__ import annotations

from collections.abc import Iterator

from megatron_vlm.config.model import LanguageConfig


def language_problems(language: LanguageConfig) -> Iterator[str]:
    """One sentence a problem, with a value that works; numbers must be in their ranges already."""
    turned = int(language.head_dim * language.rotary_percent)
    if language.kv_channels is not None and language.kv_channels % 2:
        yield (
            f"model.language.kv_channels: {language.kv_channels} is odd, and rotary positions need heads of an even size; "
            f"nearest: {language.kv_channels + 1}"
        )
    elif turned < 2 or turned % 2:
        yield (
            f"model.language.rotary_percent: {language.rotary_percent} of heads of {language.head_dim} turns {turned} "
            f"channels, and positions turn pairs; for example 1.0"
        )
    if language.qk_layernorm_full_width:
        if not language.qk_layernorm:
            yield "model.language.qk_layernorm_full_width: nothing is normalised with qk_layernorm false; set that to true"
        if language.normalization == "layernorm" or language.zero_centered_gamma:
            yield (
                "model.language.qk_layernorm_full_width: this norm has a gain alone; set normalization to rmsnorm or "
                "layernorm_gain, and zero_centered_gamma to false"
            )
    if language.norm_after and language.parallel_residual:
        yield "model.language.norm_after: a layer with parallel_residual has norms before its branches; set one to false"
    if language.zero_centered_gamma and language.normalization != "rmsnorm":
        yield f"model.language.zero_centered_gamma: only with normalization rmsnorm, which is {language.normalization}"
