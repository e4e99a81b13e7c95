"""What `megatron-vlm plan` is asked about: the configuration, its run as stretches of steps, and the hardware."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from megatron_vlm.config.run import RunConfig
    from megatron_vlm.planning.efficiency import Efficiency
    from megatron_vlm.planning.hardware import Hardware
    from megatron_vlm.planning.run_stretches import Stretch

#: the vocabulary that the presets' tables in docs are counted with (GPT-NeoX's tokenizer)
VOCABULARY = 50277
#: tokens of a document where neither a dataset nor --assume tells: of text, and of what goes with a picture
TEXT_TOKENS, CAPTION_TOKENS = 1000.0, 38.0


@dataclass(frozen=True)
class Inputs:
    name: str
    config: RunConfig
    stretches: list[Stretch]
    vocab_size: int
    hardware: Hardware
    efficiency: Efficiency
    #: what was assumed, for the reader
    notes: list[str]


def read_inputs(args: argparse.Namespace, given: list[str], overrides: list[str]) -> Inputs:
    """Raises ConfigError for a configuration that has no plan."""
    from megatron_vlm.config.checks import plan_problems
    from megatron_vlm.errors import ConfigError
    from megatron_vlm.planning.curriculum_plan import plan_curriculum
    from megatron_vlm.planning.efficiency import efficiency_of, read_efficiency
    from megatron_vlm.planning.hardware import hardware
    from megatron_vlm.planning.run_stretches import run_stretches
    from megatron_vlm.training.source_shapes import read_shapes

    config, name = _configuration(args, given, overrides)
    found = plan_problems(config)
    if found:
        raise ConfigError("this run has no plan:\n" + "\n".join(f"  - {line}" for line in found))
    assumed, notes = _assumptions(args.assume, config)
    shapes, said = read_shapes(config, assumed)
    notes += [line for line in said if "assumed to have" not in line]
    plan = plan_curriculum(config, shapes, lambda step: 0.0)
    stretches = run_stretches(config, plan, shapes)
    if any(piece.shares.visual is None for piece in plan.pieces):
        notes.append("a stage's share of pictures is not known and taken for 0; say --assume SOURCE=TOKENS+PICTURES")
    chip = hardware(args.gpu)
    efficiency = efficiency_of(chip.name) if args.efficiency is None else read_efficiency(args.efficiency)
    if config.model.lora.rank:
        notes.append(
            "low-rank updates train beside PyTorch's own layers (parallel.layer_spec host); activations and seconds are "
            "planned as those of Transformer Engine's, which keep less and are faster"
        )
    vocab_size, note = _vocabulary(args, config)
    return Inputs(name, config, stretches, vocab_size, chip, efficiency, notes + ([note] if note else []))


def _configuration(args: argparse.Namespace, given: list[str], overrides: list[str]) -> tuple[RunConfig, str]:
    from megatron_vlm.config.loading import load_config
    from megatron_vlm.errors import ConfigError

    if len(given) > 1:
        raise ConfigError(f"{' '.join(given)}: give one configuration, a YAML file or the name of a preset")
    if given and (args.config or args.preset):
        raise ConfigError(f"{given[0]} and {args.config or args.preset} are two configurations; give one")
    preset, file = args.preset, args.config
    if given:
        is_file = Path(given[0]).suffix in (".yaml", ".yml") or "/" in given[0] or Path(given[0]).is_file()
        preset, file = (None, Path(given[0])) if is_file else (given[0], None)
    if not (preset or file):
        raise ConfigError("which configuration? Give a YAML file or the name of a preset, such as vlm_1b")
    config = load_config(preset=preset, file=file, overrides=overrides)
    if not config.data.sources:
        weights = [w for s in config.curriculum.stages for w in (s.sources, s.sources_from)]
        sources = dict.fromkeys((source for one in weights for source in one), "")
        config = replace(config, data=replace(config.data, sources=sources))
    return config, Path(str(file or preset)).stem


def _assumptions(texts: list[str], config: RunConfig) -> tuple[dict[str, tuple[float, float]], list[str]]:
    """Documents of each source without a dataset: as --assume says, else by name and in words to the reader."""
    from megatron_vlm.cli.curriculum import _assumption

    assumed = dict(_assumption(text, config) for text in texts)
    notes = []
    for name, prefix in config.data.sources.items():
        if prefix or name in assumed:
            continue
        plain = "text" in name
        assumed[name] = (TEXT_TOKENS, 0.0) if plain else (CAPTION_TOKENS, 1.0)
        words = f"{TEXT_TOKENS:g} tokens" if plain else f"{CAPTION_TOKENS:g} tokens and a picture"
        notes.append(f"{name}: no dataset, documents of {words} assumed (--assume {name}=TOKENS+PICTURES says otherwise)")
    return assumed, notes


def _vocabulary(args: argparse.Namespace, config: RunConfig) -> tuple[int, str | None]:
    if args.vocab_size is not None:
        return int(args.vocab_size), None
    if config.data.tokenizer:
        from megatron_vlm.data.tokenizer import Tokenizer

        return Tokenizer.load(Path(config.data.tokenizer)).vocab_size, None
    return VOCABULARY, f"no tokenizer given: a vocabulary of {VOCABULARY:,} (--vocab-size says otherwise)"
