"""What the ViT families share: layers with biases and two norms, under names of their own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from megatron_vlm.config.model import Activation, VisionConfig
from megatron_vlm.interop.layouts import GroupedQKV, Same
from megatron_vlm.interop.mapping import Entry, Unexpressed

#: this project's names of activations -> those of transformers
ACTIVATION_NAMES: dict[str, str] = {"gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "quick_gelu": "quick_gelu"}
_ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "quick_gelu": "quick_gelu",
}


def read_activation(family: str, name: str) -> Activation:
    """Raises Unexpressed for one that this project's layers do not have."""
    if name not in _ACTIVATIONS:
        raise Unexpressed(f"{family}: hidden_act {name!r} is none of {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]


def write_activation(vision: VisionConfig) -> str:
    """As transformers calls it. Raises Unexpressed for one that the family's MLP does not have."""
    if vision.activation not in ACTIVATION_NAMES:
        known = ", ".join([*ACTIVATION_NAMES, *(["swiglu"] if vision.kind == "dinov2" else [])])
        raise Unexpressed(f"{vision.kind}: model.vision.activation is {vision.activation}, none of the family's {known}")
    return ACTIVATION_NAMES[vision.activation]


@dataclass(frozen=True)
class LayerNames:
    """Names of a layer's parts, the layer's number in `layer`."""

    layer: str
    qkv: tuple[str, str, str]
    out: str
    norms: tuple[str, str]
    fc1: str = "mlp.fc1"
    fc2: str = "mlp.fc2"


def norm_entries(ours: str, theirs: str, size: int) -> list[Entry]:
    return [Entry(f"{ours}.{kind}", (f"{theirs}.{kind}",), Same((size,))) for kind in ("weight", "bias")]


def vit_layers(vision: VisionConfig, names: LayerNames) -> Iterator[Entry]:
    """The layers that this project's encoder has; `skip_last_layers` are left out."""
    hidden, width, heads = vision.hidden_size, vision.ffn_width, vision.num_attention_heads
    up = 2 * width if vision.gated else width
    for number in range(vision.num_layers - vision.skip_last_layers):
        ours, theirs = f"vision.decoder.layers.{number}.", names.layer.format(number)
        yield from norm_entries(f"{ours}input_layernorm", theirs + names.norms[0], hidden)
        yield from norm_entries(f"{ours}pre_mlp_layernorm", theirs + names.norms[1], hidden)
        for kind, tail in (("weight", True), ("bias", False)):
            qkv = tuple(f"{theirs}{name}.{kind}" for name in names.qkv)
            width_in = hidden if tail else None
            yield Entry(f"{ours}self_attention.linear_qkv.{kind}", qkv, GroupedQKV(heads, heads, hidden // heads, width_in))
            for part, name, out, into in (
                ("self_attention.linear_proj", names.out, hidden, hidden),
                ("mlp.linear_fc1", names.fc1, up, hidden),
                ("mlp.linear_fc2", names.fc2, hidden, width),
            ):
                yield Entry(f"{ours}{part}.{kind}", (f"{theirs}{name}.{kind}",), Same((out, into) if tail else (out,)))


def vit_sizes(config: Mapping[str, Any], defaults: Mapping[str, int]) -> dict[str, Any]:
    """image_size, patch_size, num_layers and hidden_size. Raises Unexpressed for pictures that are not square."""
    found = {name: config.get(name, default) for name, default in defaults.items()}
    for name, value in found.items():
        if not isinstance(value, int):
            raise Unexpressed(f"config.json of the encoder: {name} {value!r} is no whole number, and pictures are squares")
    found["num_layers"] = found.pop("num_hidden_layers")
    if config.get("num_channels", 3) != 3:
        raise Unexpressed(f"config.json of the encoder: num_channels {config['num_channels']}, and pictures have three")
    return found


def skipped_layers(vision: VisionConfig, layer: str) -> str:
    """A pattern of the tensors of the layers that `skip_last_layers` leaves out; matches nothing where there are none."""
    kept = vision.num_layers - vision.skip_last_layers
    numbers = "|".join(str(number) for number in range(kept, vision.num_layers)) or "-"
    return layer.replace(".", r"\.").format(f"({numbers})") + ".*"
