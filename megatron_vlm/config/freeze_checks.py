"""What is wrong with the `freeze` lists of stages, as far as names of parameters are known before a model is built.

The rest of their names, which layer specs and variants decide, is looked at when there is a model (`training.freezing`).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator

from megatron_vlm.config.curriculum import MODULES
from megatron_vlm.config.curriculum_checks import stage_path
from megatron_vlm.config.run import RunConfig

#: how names of parameters outside of the layers may begin
_ENCODER = (
    "class_token",
    "register_tokens",
    "patch_embedding.",
    "position_embeddings.",
    "pre_norm.",
    "decoder.final_layernorm.",
)
_OTHERS = {
    "language_model.": ("embedding.", "decoder.final_layernorm.", "output_layer."),
    "vision.": _ENCODER,
    "vision.second.": _ENCODER,
    "projector.": ("linear_fc1.", "linear_middle.", "linear_fc2."),
}


def freeze_problems(config: RunConfig) -> Iterator[str]:
    """Entries that can begin no parameter's name, and stages that would train nothing."""
    known = _beginnings(config)
    for index, stage in enumerate(config.curriculum.stages):
        where = f"{stage_path(config, index)}.freeze"
        for entry in stage.freeze:
            if entry not in MODULES and not any(entry.startswith(name) or name.startswith(entry) for name in known):
                yield f"{where}: {entry!r} is {_remedy(entry, config, known)}"
        frozen = tuple(MODULES.get(entry, entry) for entry in stage.freeze)
        if all(name.startswith(frozen) for name in known):
            yield f"{where}: {nothing_trained(stage.freeze)}"


def nothing_trained(freeze: tuple[str, ...]) -> str:
    """Why a stage with this list cannot run."""
    given = next((module for module in MODULES if module in freeze), None)
    remedy = f"leave {given} out, or the stage" if given else "leave an entry out, or the stage"
    return f"[{', '.join(freeze)}] is everything that a stage can train, and this one would train nothing; {remedy}"


def _layers(config: RunConfig) -> dict[str, tuple[str, int]]:
    """How names begin before a layer's number -> the field that says how many layers there are, and how many."""
    model = config.model
    found = {"language_model.decoder.layers.": ("model.language.num_layers", model.language.num_layers)}
    names = (("vision.", "model.vision"), ("vision.second.", "model.vision_second"))
    for (begin, where), vision in zip(names, model.encoders, strict=False):
        taken = f"{where}.num_layers - skip_last_layers" if vision.skip_last_layers else f"{where}.num_layers"
        found[f"{begin}decoder.layers."] = (taken, vision.num_layers - vision.skip_last_layers)
    return found


def _beginnings(config: RunConfig) -> list[str]:
    """With one of these every parameter's name begins."""
    encoders = ("vision.", "vision.second.")[: len(config.model.encoders)]
    found = [f"{begin}{n}." for begin, (_, layers) in _layers(config).items() for n in range(layers)]
    for begin in ("language_model.", *encoders, "projector."):
        found += [begin + rest for rest in _OTHERS[begin]]
    return found


def _remedy(entry: str, config: RunConfig, known: list[str]) -> str:
    """Why an entry names nothing, and what may have been meant."""
    numbered = re.match(r"(.*decoder\.layers\.)(\d+)", entry)
    field, layers = _layers(config).get(numbered[1], ("", 0)) if numbered else ("", 0)
    if numbered and layers:
        return (
            f"no layer: {field} {layers} gives layers 0 to {layers - 1}; nearest: {numbered[1]}{layers - 1}"
            f"{entry[numbered.end() :]}"
        )
    what = f"no module ({', '.join(MODULES)}) and no parameter's name begins so"
    close = difflib.get_close_matches(entry, [*MODULES, *MODULES.values(), *known], n=1, cutoff=0.5)
    return f"{what}; did you mean {close[0]!r}?" if close else f"{what}; such as {known[0]!r}"
