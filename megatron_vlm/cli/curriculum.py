"""Show the plan of a run: tokens by stage and source, repeats, learning rate, where pictures enter; and what came of it.

  megatron-vlm curriculum show run.yaml                                  the plan, before anything runs
  megatron-vlm curriculum show run.yaml --curriculum.stages.0.until 0.6  the plan that another border would have
  megatron-vlm curriculum show run.yaml --out plan.png                   and a picture of it (.png, .svg, .pdf or .html)
  megatron-vlm curriculum show --run runs/first --out run.html           a run's plan beside what its metrics say
  megatron-vlm curriculum show --preset vlm_1b --assume text=1000 --assume captions=38+1
                                                                         a plan without datasets

CONFIG is a YAML file or the name of a preset; --section.field VALUE overrides it as in `megatron-vlm train`. Datasets are
not read, only counted, from their indexes. Where one is not there, the plan goes without its repeats and says so; --assume
tells what its documents would be like: tokens of text and number of pictures of one, on average.

A pass is one reading of all documents of a source. Positions count padding as filled, so a run reads a little less.

exit codes: 0 shown; 1 shown, and training would refuse it; 2 the configuration is refused, or a file cannot be read
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from megatron_vlm.config.run import RunConfig
    from megatron_vlm.planning.curriculum_achieved import Achieved
    from megatron_vlm.planning.curriculum_plan import CurriculumPlan

TAKES_OVERRIDES = True
SUFFIXES = (".png", ".svg", ".pdf", ".html")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from megatron_vlm.cli.train import add_config_arguments

    parser.usage = (
        "megatron-vlm curriculum show [CONFIG | --preset PRESET | --config FILE] [--run FOLDER] [--out FILE] [--json]\n"
        "         [--assume SOURCE=TOKENS[+PICTURES]] [--repeats N] [--section.field VALUE ...]"
    )
    # one list, since an optional CONFIG of its own would take the values of overrides
    parser.add_argument("words", nargs="+", metavar="show [CONFIG]", help="a YAML file or the name of a preset")
    add_config_arguments(parser)
    parser.add_argument(
        "--run", type=Path, dest="folder", metavar="FOLDER", help="a run's folder: its config.yaml and metrics.jsonl"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="draw it: .png, .svg, .pdf or .html")
    parser.add_argument("--json", action="store_true", help="print the same as json")
    parser.add_argument(
        "--assume", action="append", default=[], metavar="SOURCE=TOKENS[+PICTURES]", help="documents of a missing dataset"
    )
    parser.add_argument(
        "--repeats", type=float, default=4, metavar="N", help="warn of a source read more often (default: %(default)s)"
    )


def run(args: argparse.Namespace) -> int:
    from megatron_vlm.cli.curriculum_table import describe_differences, describe_plan
    from megatron_vlm.config.checks import plan_problems
    from megatron_vlm.errors import ConfigError
    from megatron_vlm.planning.curriculum_achieved import differences
    from megatron_vlm.planning.curriculum_plan import plan_curriculum
    from megatron_vlm.planning.curriculum_warnings import refusals, warnings
    from megatron_vlm.training.learning_rate import learning_rate_law

    if args.out is not None and args.out.suffix not in SUFFIXES:
        raise ConfigError(f"--out {args.out} ends with none of {', '.join(SUFFIXES)}; name a file that does")
    config, name = _configuration(args)
    found = plan_problems(config)
    if found:
        raise ConfigError("this curriculum has no plan:\n" + "\n".join(f"  - {line}" for line in found))
    assumed = dict(_assumption(text, config) for text in args.assume)
    from megatron_vlm.training.source_shapes import read_shapes

    shapes, notes = read_shapes(config, assumed)
    plan = plan_curriculum(config, shapes, learning_rate_law(config))
    refused, careful = list(refusals(config, plan)), list(warnings(config, plan, args.repeats))
    achieved = None if args.folder is None else _achieved(args.folder, config)
    compared = differences(plan, achieved) if achieved else []
    if args.json:
        print(json.dumps(_as_json(plan, achieved, compared, refused, careful, notes), indent=2))
    else:
        lines = [*describe_plan(config, plan)]
        if achieved is not None:
            lines += ["", *describe_differences(compared, achieved.moments[-1].step, plan.total_steps)]
        lines += [""] if refused or careful or notes else []
        lines += [f"refused by train: {line}" for line in refused]
        lines += [f"warning: {line}" for line in careful]
        lines += [f"note: {line}" for line in notes]
        print("\n".join(lines))
    if args.out is not None:
        from megatron_vlm.planning.curriculum_picture import write_picture

        text = "\n".join(describe_plan(config, plan))
        write_picture(args.out, f"Curriculum of {name}", plan, achieved, text)
        if not args.json:
            print(f"\nWrote {args.out}")
    return 1 if refused else 0


def _configuration(args: argparse.Namespace) -> tuple[RunConfig, str]:
    """The configuration asked for, with empty places for sources where it names no dataset at all; and what to call it."""
    from dataclasses import replace

    from megatron_vlm.config.loading import load_config
    from megatron_vlm.errors import ConfigError

    action, *given = args.words
    if action != "show" or len(given) > 1:
        raise ConfigError(f"{' '.join(args.words)}: say `megatron-vlm curriculum show CONFIG`")
    overrides = list(args.overrides)
    if not given and overrides and not overrides[0].startswith("--"):
        given = [overrides.pop(0)]  # CONFIG after an option, as in `show --json run.yaml`
    if given and (args.config or args.preset):
        raise ConfigError(f"{given[0]} and {args.config or args.preset} are two configurations; give one")
    preset, file = args.preset, args.config
    if given:
        preset, file = (None, Path(given[0])) if _is_file(given[0]) else (given[0], None)
    if args.folder is not None and not (preset or file):
        file = args.folder / "config.yaml"
    if not (preset or file):
        raise ConfigError("which configuration? Give a YAML file, --preset NAME, or --run FOLDER of a run")
    from megatron_vlm.training.length import with_length

    config = with_length(load_config(preset=preset, file=file, overrides=overrides))
    name = (args.folder or file or Path(str(preset))).name
    if config.data.sources:
        return config, name
    curriculum = config.curriculum
    weights = [w for stage in curriculum.stages for w in (stage.sources, stage.sources_from)] + [curriculum.max_epochs]
    sources = dict.fromkeys((source for one in weights for source in one), "")
    return replace(config, data=replace(config.data, sources=sources)), name


def _is_file(name: str) -> bool:
    return Path(name).suffix in (".yaml", ".yml") or "/" in name or Path(name).is_file()


def _assumption(text: str, config: RunConfig) -> tuple[str, tuple[float, float]]:
    """ "captions=38+1" -> ("captions", (38.0, 1.0)): tokens of text and pictures of a document, on average."""
    from megatron_vlm.errors import ConfigError

    name, equals, sizes = text.partition("=")
    words, plus, pictures = sizes.partition("+")
    try:
        size = float(words), float(pictures) if plus else 0.0
    except ValueError:
        size = -1.0, 0.0
    if not equals or min(size) < 0 or sum(size) < 1 or not sum(size) < 1e12:
        raise ConfigError(f"--assume {text}: say SOURCE=TOKENS or SOURCE=TOKENS+PICTURES, such as captions=38+1")
    if name not in config.data.sources:
        raise ConfigError(f"--assume {text}: {name!r} is none of the sources ({', '.join(config.data.sources)})")
    return name, size


def _achieved(folder: Path, config: RunConfig) -> Achieved:
    from megatron_vlm.errors import DataError
    from megatron_vlm.planning.curriculum_achieved import read_achieved

    path = folder / "metrics.jsonl"
    records = []
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                records.append(json.loads(line))
            except ValueError:
                continue  # the half line of a run that was killed, or that is writing now
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}; --run takes the folder of a run") from None
    achieved = read_achieved(records, config)
    if not achieved.moments:
        raise DataError(f"{path} has no step that says what it was trained on; leave --run out for the plan alone")
    return achieved


def _as_json(
    plan: CurriculumPlan,
    achieved: Achieved | None,
    compared: list[Any],
    refused: list[str],
    careful: list[str],
    notes: list[str],
) -> dict[str, Any]:
    from dataclasses import asdict

    entry = plan.pictures_enter
    shown: dict[str, Any] = {
        "steps": plan.total_steps,
        "positions": plan.total_tokens,
        "stages": [asdict(stage) for stage in plan.stages],
        "source_passes": plan.source_passes,
        "pictures_enter": None if entry is None else {"step": int(entry.first_step), "positions": entry.first_token},
        "exhausted": [asdict(gone) for gone in plan.exhausted],
        "refused": refused,
        "warnings": careful,
        "notes": notes,
    }
    if achieved is not None:
        shown["achieved"] = {
            "step": achieved.moments[-1].step,
            "source_tokens": achieved.moments[-1].source_tokens,
            "visual_tokens": achieved.moments[-1].visual,
            "source_epochs": achieved.source_epochs,
            "differences": [{**asdict(one), "tokens": one.tokens} for one in compared],
        }
    return shown
