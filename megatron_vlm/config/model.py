"""Shapes of the language model, the vision encoder and the projector between them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Normalization = Literal["rmsnorm", "layernorm", "layernorm_gain"]
Activation = Literal["swiglu", "geglu", "gelu", "quick_gelu", "gelu_tanh"]
#: activations of layers that have a gate matrix beside the up matrix
GATED: frozenset[str] = frozenset({"swiglu", "geglu"})


@dataclass(frozen=True)
class LanguageConfig:
    """The decoder: megatron-core's GPTModel with rotary positions."""

    num_layers: int = 8
    hidden_size: int = 512
    num_attention_heads: int = 4
    #: key/value heads (grouped-query attention); null: as many as attention heads
    num_query_groups: int | None = None
    #: size of a head; null: hidden_size / num_attention_heads
    kv_channels: int | None = None
    #: null: the SwiGLU width of the open_lm family, 256 * ceil((8 * hidden_size / 3) / 256)
    ffn_hidden_size: int | None = None
    normalization: Normalization = "rmsnorm"
    norm_epsilon: float = 1e-5
    #: gains are kept as their distance from one (rmsnorm, the Gemma family)
    zero_centered_gamma: bool = False
    activation: Activation = "swiglu"
    #: biases of the query, key and value matrices (the Qwen2 family)
    add_qkv_bias: bool = False
    #: biases of every matrix of a layer (the GPT-NeoX family)
    add_bias_linear: bool = False
    #: attention and MLP both read a layer's input and are added to it together (the GPT-NeoX family)
    parallel_residual: bool = False
    #: normalise queries and keys per head before the attention
    qk_layernorm: bool = True
    #: normalise them over all heads together instead (the open_lm and OLMo 2 families); moments cross tensor-parallel ranks
    qk_layernorm_full_width: bool = False
    #: norms stand after attention and MLP, before they are added, and none before them (the OLMo 2 family)
    norm_after: bool = False
    rotary_base: int = 10000
    #: share of each head that the positions turn, from its front
    rotary_percent: float = 1.0
    #: stretch long wavelengths by this factor, as Llama 3.1 does for a context of 8192 before; null: off
    rope_scaling_factor: float | None = None
    #: what word embeddings are multiplied by at the input; rows of pictures are not (the Gemma family)
    embedding_scale: float = 1.0
    untie_embeddings: bool = True
    dropout: float = 0.0
    #: the vocabulary is padded to a multiple of this, whatever the tensor-parallel size, so that layouts stay comparable
    vocab_pad_multiple: int = 128
    init_method: Literal["normal", "trunc_normal"] = "trunc_normal"
    #: null: 1 / sqrt(fan_in) of each matrix
    init_std: float | None = 0.02
    #: scale the residual-writing matrices by 1 / sqrt(2 * num_layers)
    depth_scaled_init: bool = True

    @property
    def ffn_width(self) -> int:
        if self.ffn_hidden_size is not None:
            return self.ffn_hidden_size
        if self.gated:
            return 256 * -(-(8 * self.hidden_size) // (3 * 256))
        return 4 * self.hidden_size

    @property
    def gated(self) -> bool:
        """Whether the MLP has a gate matrix beside its up matrix."""
        return self.activation in GATED

    @property
    def query_groups(self) -> int:
        return self.num_query_groups or self.num_attention_heads

    @property
    def head_dim(self) -> int:
        return self.kv_channels or self.hidden_size // self.num_attention_heads


@dataclass(frozen=True)
class VisionConfig:
    """A ViT of megatron-core transformer layers over square pictures.

    `kind` sets what the families differ in: `siglip` (learned positions, no class token, pre-norm), `clip` (class token,
    a norm before the layers, quick-GELU), `dinov2` (class and register tokens, layer scale).
    """

    kind: Literal["siglip", "clip", "dinov2"] = "siglip"
    image_size: int = 64
    patch_size: int = 8
    #: 0: no encoder beyond the embedding of patches, which go to the projector raw
    num_layers: int = 4
    hidden_size: int = 128
    num_attention_heads: int = 4
    ffn_hidden_size: int | None = None
    activation: Activation = "gelu_tanh"
    norm_epsilon: float = 1e-6
    #: pixel mean and standard deviation of each channel, in [0, 1]
    pixel_mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    pixel_std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    #: dinov2 only
    register_tokens: int = 0
    #: features are taken this many layers before the end (LLaVA takes CLIP's last but one: 1)
    skip_last_layers: int = 0
    #: a norm after the last layer; false where the features of an inner layer are taken
    final_norm: bool = True

    @property
    def ffn_width(self) -> int:
        return self.ffn_hidden_size or 4 * self.hidden_size

    @property
    def gated(self) -> bool:
        """Whether the MLP has a gate matrix beside its up matrix."""
        return self.activation in GATED

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.image_size // self.patch_size

    @property
    def patches(self) -> int:
        return self.grid * self.grid

    @property
    def prefix_tokens(self) -> int:
        """Tokens before the patches: the class token and the registers."""
        return {"siglip": 0, "clip": 1, "dinov2": 1 + self.register_tokens}[self.kind]


@dataclass(frozen=True)
class ProjectorConfig:
    """From vision features to rows of the language model's input."""

    kind: Literal["linear", "mlp2", "mlp3"] = "mlp2"
    #: width of the hidden layers; null: the language model's hidden size
    hidden_size: int | None = None
    #: fold n x n neighbouring patches into one row (pixel-shuffle); 1: off
    pixel_shuffle: int = 1


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank updates beside the language blocks' matrices (LoRA): these are trained instead of the language model."""

    #: 0: off
    rank: int = 0
    #: updates count alpha / rank
    alpha: float = 16.0
    #: matrices with an update: queries, keys and values; the attention's output; gate and up; down
    targets: tuple[Literal["qkv", "proj", "fc1", "fc2"], ...] = ("qkv", "proj", "fc1", "fc2")


@dataclass(frozen=True)
class ModelConfig:
    language: LanguageConfig = field(default_factory=LanguageConfig)
    vision: VisionConfig = field(default_factory=VisionConfig)
    projector: ProjectorConfig = field(default_factory=ProjectorConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    #: another encoder of the same patch_size, whose features of a patch stand beside the first one's; it is trained and
    #: frozen with it (`vision`). null: none
    vision_second: VisionConfig | None = None

    @property
    def encoders(self) -> tuple[VisionConfig, ...]:
        """One, or two side by side."""
        return (self.vision,) if self.vision_second is None else (self.vision, self.vision_second)

    @property
    def vision_width(self) -> int:
        """Features of a patch, of all encoders together."""
        return sum(vision.hidden_size for vision in self.encoders)

    @property
    def image_tokens(self) -> int:
        """Rows (placeholders) that one picture takes in the language model's sequence."""
        return self.image_tokens_at()

    def image_tokens_at(self, image_size: int | None = None, pool: int = 1) -> int:
        """Rows of one picture of `image_size` pixels a side (None: the encoder's own), averaged `pool` x `pool`."""
        side = (image_size or self.vision.image_size) // self.vision.patch_size // self.projector.pixel_shuffle // pool
        return side * side
