"""Fields of a Hugging Face config.json, as they have been spelt over the years."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from megatron_vlm.interop.mapping import Unexpressed

_MISSING = object()

#: what megatron-core's rope_scaling has built in, which are Llama 3.1's own (its rotary_pos_embedding._apply_scaling)
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def field(config: Mapping[str, Any], name: str, default: Any = _MISSING) -> Any:
    """A field, or its default where it is absent or null. Raises Unexpressed where there is none to take."""
    value = config.get(name)
    if value is None:
        if default is _MISSING:
            raise Unexpressed(f"config.json of a {config.get('model_type')}: {name} is missing")
        return default
    return value


@dataclass(frozen=True)
class Rope:
    """Rotary positions: base, share of a head that turns, and Llama 3.1's factor."""

    base: int
    percent: float = 1.0
    factor: float | None = None


def read_rope(config: Mapping[str, Any], default_base: float = 10000.0, default_percent: float = 1.0) -> Rope:
    """From `rope_parameters` (transformers 5) or `rope_theta`, `rope_scaling` and `rotary_pct`.

    Raises Unexpressed for a scaling that megatron-core does not have, and for a base that differs between layers.
    """
    given = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    if any(isinstance(value, Mapping) for value in given.values()):
        raise Unexpressed("its layers have rotary bases of their own, and megatron-core's GPTModel has one for all")
    base = given.get("rope_theta") or config.get("rope_theta") or config.get("rotary_emb_base") or default_base
    if float(base) != int(base):
        raise Unexpressed(f"rope_theta {base} is no whole number, which megatron-core's rotary base is")
    kind = given.get("rope_type") or given.get("type") or "default"
    percent = given.get("partial_rotary_factor")
    if percent is None:
        percent = config.get("partial_rotary_factor", config.get("rotary_pct", default_percent))
    factor = None
    if kind == "llama3":
        other = {key: given.get(key) for key, value in _LLAMA3.items() if given.get(key) != value}
        if other:
            raise Unexpressed(f"rope scaling llama3 with {other}: megatron-core has it with {_LLAMA3} alone")
        factor = float(given["factor"])
    elif kind != "default":
        raise Unexpressed(f"rope scaling {kind!r} is not in megatron-core's GPTModel (none, or llama3)")
    return Rope(int(base), float(percent), factor)


def partial_reason(rope: Rope) -> str:
    """Why a share of a head is refused by the families whose class turns all of it; empty where it is all."""
    if rope.percent == 1.0:
        return ""
    return (
        f"partial_rotary_factor {rope.percent:g}: transformers' class turns whole heads whatever this says; if the model "
        f"was trained so, take it out of its config.json"
    )


def write_rope(base: int, factor: float | None) -> dict[str, Any]:
    """`rope_parameters` as transformers 5 reads them. The share of a head is not among them: few classes heed it."""
    if factor is None:
        return {"rope_type": "default", "rope_theta": float(base)}
    return {"rope_type": "llama3", "rope_theta": float(base), "factor": factor, **_LLAMA3}


def window_reason(config: Mapping[str, Any], uses: bool = True) -> str:
    """Why a sliding window is refused; empty where there is none, or where positions end before it."""
    window = config.get("sliding_window")
    if not uses or window is None or window >= config.get("max_position_embeddings", 0):
        return ""
    return (
        f"its attention sees {window} positions back, and this project's layers see the whole document; for documents of "
        f"at most {window} tokens it is the same function: set max_position_embeddings in its config.json to {window}"
    )
