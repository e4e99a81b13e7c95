"""Evaluate a checkpoint: held-out loss by modality, tasks, naming of pictures, and what remains without seeing.

  megatron-vlm evaluate runs/first
  megatron-vlm evaluate runs/first/checkpoints/step-00000800 --naming style='data/heldout-style-*.tar' --output r.json
  megatron-vlm evaluate runs/first --task tasks/hellaswag.yaml --task tasks/pope.yaml --control shuffled --output r.json
  megatron-vlm evaluate --compare before.json after.json
  torchrun --nproc-per-node 4 -m megatron_vlm.cli.main evaluate runs/first \\
      --parallel.tensor_model_parallel_size 2 --parallel.pipeline_model_parallel_size 2

CHECKPOINT is a run's folder (its newest checkpoint is taken) or a step's. Held-out sources are those of the run's
data.validation; --data.validation.NAME PREFIX adds one. Captions are scored again under each other's pictures: a loss that
does not rise (gap 0) means that the model does not look. Naming asks which of four names is likeliest under a picture,
from tars whose .json have a field `name`; chance is 25 %. A task is a small YAML file (docs/evaluation.md); its scores come
with intervals by bootstrap, and two results files are compared question by question. The layout need not be the one of
the training. Length, size of pictures and tokens a picture are those of the checkpoint's last steps;
--curriculum.stages.N.image_size SIZE is another.

exit codes: 0 done; 2 refused (checkpoint, data, layout)
"""

from __future__ import annotations

import argparse
from pathlib import Path

TAKES_OVERRIDES = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, nargs="?", metavar="CHECKPOINT", help="a run's folder or a step's")
    parser.add_argument(
        "--task", action="append", default=[], type=Path, metavar="FILE", help="a task's .yaml, or a folder of them"
    )
    parser.add_argument(
        "--control",
        action="append",
        default=[],
        choices=("shuffled", "blind"),
        help="answer tasks with pictures again, under each other's pictures or without any; may be given again",
    )
    parser.add_argument(
        "--naming",
        action="append",
        default=[],
        metavar="NAME=GLOB",
        help="tars of pictures to be named, under a name for the table; may be given again",
    )
    parser.add_argument("--name-key", default="name", help="field of the .json that holds the name (default: name)")
    parser.add_argument(
        "--template", default="{name}", help="words around the name, as captions have them (default: '{name}')"
    )
    parser.add_argument("--limit", type=int, default=0, help="documents of each source and questions at most (0: all)")
    parser.add_argument(
        "--harness",
        metavar="NAMES",
        help="tasks of lm-evaluation-harness, by name with commas: arc_easy,hellaswag (pip install lm-eval); after the word "
        "lmms-eval: those of lmms-eval: lmms-eval:pope,gqa (pip install lmms-eval)",
    )
    parser.add_argument("--harness-include", type=Path, metavar="DIR", help="a folder of your own of its task files")
    parser.add_argument("--harness-shots", type=int, metavar="N", help="examples before each of the harness's questions")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the results as json")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tasks' table as Markdown")
    parser.add_argument("--tensorboard", action="store_true", help="add the tasks' scores to the run's TensorBoard")
    parser.add_argument(
        "--compare",
        nargs=2,
        type=Path,
        metavar=("A", "B"),
        help="print what the second results file scores above the first, with a paired test, and do nothing else",
    )


def run(args: argparse.Namespace) -> int:
    if args.compare:
        return _compare(*args.compare)
    return _evaluate(args)


def _compare(first: Path, second: Path) -> int:
    from megatron_vlm.errors import DataError
    from megatron_vlm.evaluation.report import read_scores
    from megatron_vlm.evaluation.score_table import difference_table
    from megatron_vlm.evaluation.task_scores import compare

    a, b = read_scores(first), read_scores(second)
    shared = [name for name in a if name in b]
    if not shared:
        raise DataError(f"{first} and {second} have no task in common")
    print(f"{second} less {first}")
    print(difference_table({name: compare(a[name], b[name]) for name in shared}))
    return 0


def _evaluate(args: argparse.Namespace) -> int:
    from megatron_vlm.cli.output_file import refuse_unwritable
    from megatron_vlm.cli.quiet import quiet_host_warnings

    quiet_host_warnings()
    from megatron_vlm.config.loading import apply_overrides
    from megatron_vlm.data import atomic_file
    from megatron_vlm.data.opening import open_sources
    from megatron_vlm.data.sources.opening import expand_inputs
    from megatron_vlm.errors import UserError
    from megatron_vlm.evaluation.harness.run_lm_eval import harness_table, require_harness, run_lm_eval
    from megatron_vlm.evaluation.harness.run_lmms_eval import PREFIX, lmms_table, require_lmms_eval, run_lmms_eval
    from megatron_vlm.evaluation.held_out import measure_held_out
    from megatron_vlm.evaluation.naming import NamingTask, make_questions
    from megatron_vlm.evaluation.report import as_map, table, write_json
    from megatron_vlm.evaluation.score_table import score_markdown, score_table, write_tensorboard
    from megatron_vlm.evaluation.scorer import Scorer, layout_for
    from megatron_vlm.evaluation.suite import run_tasks
    from megatron_vlm.evaluation.task import load_task, task_files
    from megatron_vlm.parallel.topology import shutdown, world_size_from_environment
    from megatron_vlm.training.checkpoint import checkpoint_config, find_checkpoint

    if args.checkpoint is None:
        raise UserError("give a CHECKPOINT to evaluate, or --compare A B")
    if args.limit < 0:
        raise UserError(f"--limit is {args.limit}, but must be at least 1, or 0 for all documents and questions")
    refuse_unwritable("--output", args.output)
    refuse_unwritable("--markdown", args.markdown)
    tasks = [load_task(path) for path in task_files(args.task)]
    wanted = {}
    for item in args.naming:
        name, equals, pattern = item.partition("=")
        if not equals:
            raise UserError(f"--naming {item}: expected NAME=GLOB")
        wanted[name] = expand_inputs([pattern])
    checkpoint = find_checkpoint(args.checkpoint)
    config, given = apply_overrides(checkpoint_config(checkpoint), args.overrides)
    visual = (args.harness or "").startswith(PREFIX)
    if args.harness:
        (require_lmms_eval if visual else require_harness)()
    generates = bool(args.harness) or any(not task.by_likelihood for task in tasks)
    config = layout_for(config, world_size_from_environment(), given.get("parallel", {}), generates)
    scorer = Scorer.open(checkpoint, config)
    try:
        sources = open_sources(config.data.validation, scorer.tokenizer, scorer.shape.image_tokens)
        held_out = {name: measure_held_out(scorer, source, args.limit) for name, source in sources.items()}
        naming = {
            name: NamingTask(scorer, args.template).measure(make_questions(tars, args.name_key, limit=args.limit))
            for name, tars in wanted.items()
        }
        controls = ("seen", *dict.fromkeys(args.control))
        scores = list(run_tasks(scorer, tasks, controls, args.limit))
        harness = None
        if args.harness:
            names = [name for name in args.harness.removeprefix(PREFIX).split(",") if name]
            if visual:
                harness = run_lmms_eval(scorer, names, args.harness_include, args.limit)
            else:
                harness = run_lm_eval(scorer, names, args.harness_include, args.harness_shots, args.limit)
        if scorer.topology.rank == 0:
            results = as_map(scorer.step, held_out, naming, scores)
            if harness is not None:
                results["harness"] = harness["results"]
                print((lmms_table if visual else harness_table)(harness))
            print(f"{checkpoint}, step {scorer.step}")
            print(table(held_out, naming))
            if scores:
                print(score_table(scores, results["stable_score"]))
            if args.markdown:
                atomic_file.write_text(args.markdown, score_markdown(scores))
                print(f"wrote {args.markdown}")
            if args.tensorboard:
                write_tensorboard(Path(config.logging.directory) / "tensorboard", scorer.step, scores)
            if args.output:
                write_json(args.output, results)
                print(f"wrote {args.output}")
    finally:
        shutdown()
    return 0
