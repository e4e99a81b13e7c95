"""Continue prompts with a checkpoint: a caption, an answer about a picture, or text.

  megatron-vlm generate runs/first --image cat.jpg --prompt 'a picture of'
  megatron-vlm generate runs/first --prompt 'Call me' --temperature 0.8 --top-p 0.9 --max-new-tokens 100
  megatron-vlm generate runs/first --prompts questions.jsonl --images data/images --output answers.jsonl
  torchrun --nproc-per-node 2 -m megatron_vlm.cli.main generate runs/first --prompt 'Call me' \\
      --parallel.tensor_model_parallel_size 2

CHECKPOINT is a run's folder (its newest checkpoint is taken) or a step's. One prompt is printed as it comes. A file of
prompts has one object a line, with `prompt` and, if a picture stands before it, `image` (a path under --images, a folder or
tar), or `images`, a list of several; its lines come back with `answer`. The layout need not be that of the training;
sequence parallelism and interleaved stages are left out.

exit codes: 0 done; 2 refused (checkpoint, prompts, layout)
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from megatron_vlm.evaluation.generation import Generator
    from megatron_vlm.evaluation.sampling import Sampling
    from megatron_vlm.evaluation.scorer import Scorer

TAKES_OVERRIDES = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="a run's folder or a step's")
    parser.add_argument("--prompt", default="", help="text to continue")
    parser.add_argument(
        "--image", action="append", default=[], type=Path, metavar="FILE", help="a picture before the text; may be repeated"
    )
    parser.add_argument("--prompts", type=Path, metavar="FILE", help="a .jsonl of prompts, instead of --prompt")
    parser.add_argument("--images", default="", metavar="PLACE", help="folder or tar of the pictures that --prompts names")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write prompts and answers as .jsonl")
    parser.add_argument("--max-new-tokens", type=int, default=64, help="of an answer at most (default: %(default)s)")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 takes the likeliest token (default: 0)")
    parser.add_argument("--top-p", type=float, default=1.0, help="draw from the likeliest that reach this (default: 1)")
    parser.add_argument("--top-k", type=int, default=0, help="draw from so many likeliest tokens (default: 0, all)")
    parser.add_argument("--seed", type=int, default=0, help="of the draws (default: 0)")
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end an answer before this text")
    parser.add_argument("--batch", type=int, default=32, help="prompts continued together at most (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    from megatron_vlm.cli.output_file import refuse_unwritable
    from megatron_vlm.cli.quiet import quiet_host_warnings

    quiet_host_warnings()
    from megatron_vlm.config.loading import apply_overrides
    from megatron_vlm.errors import UserError
    from megatron_vlm.evaluation.generation import Generator
    from megatron_vlm.evaluation.prompt_file import read_prompts
    from megatron_vlm.evaluation.sampling import Sampling
    from megatron_vlm.evaluation.scorer import Scorer, layout_for
    from megatron_vlm.parallel.topology import shutdown, world_size_from_environment
    from megatron_vlm.training.checkpoint import checkpoint_config, find_checkpoint

    refuse_unwritable("--output", args.output)
    if args.prompts and (args.prompt or args.image):
        raise UserError("give --prompts FILE, or --prompt and --image, not both")
    if not (args.prompts or args.prompt or args.image):
        raise UserError("nothing to continue: give --prompt TEXT, --image FILE or --prompts FILE")
    if args.batch < 1:
        raise UserError(f"--batch is {args.batch}, but at least 1 prompt has to be continued at a time")
    sampling = Sampling(args.max_new_tokens, args.temperature, args.top_k, args.top_p, args.seed)
    records: list[dict[str, Any]] = read_prompts(args.prompts) if args.prompts else [{"prompt": args.prompt}]
    checkpoint = find_checkpoint(args.checkpoint)
    config, given = apply_overrides(checkpoint_config(checkpoint), args.overrides)
    config = layout_for(config, world_size_from_environment(), given.get("parallel", {}), generates=True)
    scorer = Scorer.open(checkpoint, config)
    try:
        _continue(args, scorer, Generator(scorer, args.batch), records, sampling)
    finally:
        shutdown()
    return 0


def _continue(
    args: argparse.Namespace, scorer: Scorer, generator: Generator, records: list[dict[str, Any]], sampling: Sampling
) -> None:
    import json

    from tqdm import tqdm

    from megatron_vlm.data import atomic_file
    from megatron_vlm.evaluation.generation import Answer, Spoken, cut
    from megatron_vlm.evaluation.prompt_file import prompts_of, read_image_files

    prompts = prompts_of(scorer, generator, records, args.images, read_image_files(args.image))
    first, decode = scorer.topology.rank == 0, scorer.tokenizer.decode
    stopped = (lambda _, ids: cut(decode(ids), args.stop) != decode(ids)) if args.stop else None
    if len(prompts) == 1 and not args.output:
        spoken = Spoken(decode, args.stop)

        def say(text: str) -> None:
            if first:
                print(text, end="", flush=True)

        say(records[0]["prompt"])
        generator.generate(prompts, sampling, lambda _, token: say(spoken.add(token)), stopped)
        say(spoken.rest() + "\n")
        return
    bar = tqdm(total=len(prompts), unit=" prompts", disable=None if first else True)
    answers: list[Answer] = generator.generate(prompts, sampling, None, stopped, bar.update)
    bar.close()
    if first:
        results = [
            {**record, "answer": cut(decode(answer.ids), args.stop), "ended": answer.ended}
            for record, answer in zip(records, answers, strict=True)
        ]
        lines = "".join(json.dumps(result, ensure_ascii=False) + "\n" for result in results)
        if args.output:
            atomic_file.write_text(args.output, lines)
            print(f"wrote {args.output}")
        else:
            print(lines, end="")
