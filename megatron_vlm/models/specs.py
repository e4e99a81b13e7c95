"""Layer specs: the one place where the host and Transformer Engine differ."""

from __future__ import annotations

import copy
from typing import Any

from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.models.gpt.gpt_layer_specs import (
    get_gpt_layer_local_spec,
    get_gpt_layer_with_transformer_engine_spec,
)
from megatron.core.models.vision.vit_layer_specs import get_vit_layer_with_transformer_engine_spec
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.mlp import MLPSubmodules
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules

from megatron_vlm.config.model import LanguageConfig, VisionConfig
from megatron_vlm.config.run import RunConfig
from megatron_vlm.errors import UserError
from megatron_vlm.models.checkpoint_names import FUSED_NORMS
from megatron_vlm.models.full_width_norm import FullWidthNorm
from megatron_vlm.models.host_layers import (
    HostAttention,
    HostGainLayerNorm,
    HostLayerNorm,
    HostRMSNorm,
    HostZeroCenteredRMSNorm,
)
from megatron_vlm.models.layer_scale import LayerScaleAdd
from megatron_vlm.models.norm_after import NormedAdd
from megatron_vlm.models.parallel_residual import ParallelResidualLayer
from megatron_vlm.parallel.core_release import mlp_spec

_HOST_NORMS: dict[str, Any] = {
    "rmsnorm": HostRMSNorm,
    "layernorm": HostLayerNorm,
    "layernorm_gain": HostGainLayerNorm,
}


def choose_layer_spec(config: RunConfig, device_type: str) -> str:
    """`auto` -> transformer_engine on CUDA where it imports, else host. Low-rank updates stand beside megatron-core's own
    layers, and Transformer Engine's are fused with their norms: with them `auto` is host.

    Raises:
        UserError: `parallel.layer_spec` names one that cannot run here.
    """
    wanted = config.parallel.layer_spec
    try:
        import transformer_engine.pytorch  # noqa: F401

        present = True
    except ImportError:
        present = False
    if wanted == "transformer_engine" and (device_type == "cpu" or not present):
        reason = "this run is on CPU ranks" if device_type == "cpu" else "transformer_engine does not import here"
        raise UserError(f"parallel.layer_spec is transformer_engine, and {reason}; set it to host or auto")
    if wanted == "auto":
        return "transformer_engine" if device_type == "cuda" and present and not config.model.lora.rank else "host"
    return wanted


def language_block_spec(
    language: LanguageConfig,
    config: TransformerConfig,
    layer_spec: str,
    vp_stage: int | None = None,
    context_parallel: bool = False,
) -> TransformerBlockSubmodules:
    """The layers of this rank's pipeline chunk and the final norm. `context_parallel`: a row may be shared by ranks."""
    count = get_num_layers_to_build(config, vp_stage=vp_stage)
    if layer_spec == "transformer_engine":
        from megatron.core.extensions.transformer_engine import TENorm

        layer = get_gpt_layer_with_transformer_engine_spec(qk_layernorm=language.qk_layernorm)
        if language.norm_after:
            raise UserError(
                "model.language.norm_after: Transformer Engine fuses the norm before a matrix into it; set "
                "parallel.layer_spec to host"
            )
        layer = copy.deepcopy(layer)
        if context_parallel:
            from megatron_vlm.models.engine_context_attention import EngineContextAttention

            layer.submodules.self_attention.submodules.core_attention = EngineContextAttention
        _vary(layer, language)
        return TransformerBlockSubmodules(layer_specs=[layer] * count, layer_norm=TENorm)
    norm = HostZeroCenteredRMSNorm if language.zero_centered_gamma else _HOST_NORMS[language.normalization]
    layer = copy.deepcopy(get_gpt_layer_local_spec(qk_layernorm=language.qk_layernorm, normalization=config.normalization))
    attention = layer.submodules.self_attention.submodules
    attention.core_attention = HostAttention
    if language.qk_layernorm:
        attention.q_layernorm = attention.k_layernorm = norm
    layer.submodules.input_layernorm = layer.submodules.pre_mlp_layernorm = norm
    _vary(layer, language)
    if language.norm_after:
        layer.submodules.input_layernorm = layer.submodules.pre_mlp_layernorm = IdentityOp
        add = ModuleSpec(module=NormedAdd, params={"config": config, "norm": norm})
        layer.submodules.self_attn_bda = layer.submodules.mlp_bda = add
    return TransformerBlockSubmodules(layer_specs=[layer] * count, layer_norm=norm)


def _vary(layer: ModuleSpec, language: LanguageConfig) -> None:
    """What of a language layer is this project's own in both specs."""
    if language.parallel_residual:
        layer.module = ParallelResidualLayer
    if language.qk_layernorm and language.qk_layernorm_full_width:
        attention, centred = layer.submodules.self_attention.submodules, language.normalization != "rmsnorm"
        for name, heads in (("q_layernorm", language.num_attention_heads), ("k_layernorm", language.query_groups)):
            setattr(attention, name, ModuleSpec(module=FullWidthNorm, params={"heads": heads, "centred": centred}))


def vision_block_spec(
    vision: VisionConfig, config: TransformerConfig, layer_spec: str, native: bool = False
) -> TransformerBlockSubmodules:
    """ViT layers: every patch sees every patch of its picture. `native`: pictures of any shapes are packed in one row."""
    if layer_spec == "transformer_engine":
        from megatron.core.extensions.transformer_engine import TENorm

        layer = copy.deepcopy(get_vit_layer_with_transformer_engine_spec())
        layer.submodules.sharded_state_dict_keys_map = dict(FUSED_NORMS)
        final_norm: Any = TENorm
    else:
        layer = ModuleSpec(
            module=TransformerLayer,
            submodules=TransformerLayerSubmodules(
                input_layernorm=HostLayerNorm,
                self_attention=ModuleSpec(
                    module=SelfAttention,
                    params={"attn_mask_type": AttnMaskType.no_mask},
                    submodules=SelfAttentionSubmodules(
                        linear_qkv=ColumnParallelLinear,
                        core_attention=HostAttention,
                        linear_proj=RowParallelLinear,
                    ),
                ),
                self_attn_bda=get_bias_dropout_add,
                pre_mlp_layernorm=HostLayerNorm,
                mlp=mlp_spec(MLPSubmodules(linear_fc1=ColumnParallelLinear, linear_fc2=RowParallelLinear)),
                mlp_bda=get_bias_dropout_add,
            ),
        )
        final_norm = HostLayerNorm
    if native:  # what Transformer Engine calls a mask that goes along cu_seqlens alone
        layer.submodules.self_attention.params = {"attn_mask_type": AttnMaskType.padding}
    if vision.kind == "dinov2":
        scale = ModuleSpec(module=LayerScaleAdd, params={"config": config})
        layer.submodules.self_attn_bda = layer.submodules.mlp_bda = scale
    return TransformerBlockSubmodules(layer_specs=[layer] * config.num_layers, layer_norm=final_norm)


def vision_norm(layer_spec: str) -> Any:
    """The norm that CLIP has before its layers."""
    if layer_spec == "transformer_engine":
        from megatron.core.extensions.transformer_engine import TENorm

        return TENorm
    return HostLayerNorm
