"""What finetune_llava.sh does: the configuration of a checkpoint, with one stage over conversations.

The stage begins with the checkpoint's weights and a fresh optimiser, makes `schedule.train_epochs` passes, answers tasks
after each, and freezes the encoder. Any field can be given besides:

  --model.lora.rank 16                                        low-rank updates instead of the language model
  --curriculum.stages.0.freeze '[vision, language]'           the projector alone (alignment)
  --curriculum.stages.0.freeze '[]' --optimizer.lr_mult.vision 0.1      the encoder too, at a tenth of the rate
  --curriculum.stages.0.sources '{talk: 0.8, text: 0.2}'      text stays in the mixture
"""

from __future__ import annotations

import json
import os
import sys
import tarfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from recipe import SAMPLE, launch  # noqa: E402

USAGE = """usage: torchrun [...] examples/finetune_llava.sh CHECKPOINT [--tasks PLACE] [--section.field VALUE ...]
       bash examples/finetune_llava.sh CHECKPOINT|--smoke ...

CHECKPOINT is a run's folder or a step's. It needs
  --data.sources.talk PREFIX    conversations (megatron-vlm preprocess conversations --template ...)
and takes any other field of the configuration, among them
  --schedule.train_epochs '{talk: 2}', --schedule.lr, --schedule.global_batch_size, --model.lora.rank, --logging.directory
--tasks names task files (docs/evaluation.md) that are answered after each pass.
--smoke trains a small model on bundled pictures first, makes conversations of their names, and fine-tunes it on them.
"""

#: two passes at a tenth of the usual rate; the encoder is frozen. {checkpoint} and the tasks are filled in
STAGE = """
data: {{sources: {{}}, validation: {{}}}}
curriculum: {{stages: [{{name: instruct, sources: {{talk: 1.0}}, freeze: [vision]}}], max_epochs: {{}}}}
schedule: {{train_tokens: null, train_steps: null, train_epochs: {{talk: 2}}, global_batch_size: 128,
           rampup_batch_start: null, warmup_steps: 0, lr: 2.0e-5, min_lr: 0.0, decay: cosine}}
checkpoint: {{directory: null, start_from: '{checkpoint}', start_with: weights, resume: auto, save_interval: 0}}
evaluation: {{tasks: [{tasks}], interval: 0, interval_epochs: {interval}}}
"""


def configuration(checkpoint: Path, tasks: list[str]) -> str:
    """YAML: the checkpoint's own, with what STAGE changes."""
    import yaml

    from megatron_vlm.config.loading import merge, parse_yaml, to_map
    from megatron_vlm.training.checkpoint import checkpoint_config, find_checkpoint

    found = find_checkpoint(checkpoint)
    quoted = ", ".join(f"'{Path(task).resolve()}'" for task in tasks)
    text = STAGE.format(checkpoint=found.resolve(), tasks=quoted, interval=1 if tasks else 0)
    changed = merge(to_map(checkpoint_config(found)), parse_yaml(text, "finetuning"))
    for name in ("sources", "validation"):
        changed["data"][name] = {}
    return yaml.safe_dump(changed, sort_keys=False)


def _smoke(folder: Path) -> tuple[Path, list[str], list[str]]:
    """A small model of bundled pictures, conversations about them, and a task: its folder, overrides, tasks."""
    from megatron_vlm.cli.main import main as command

    tar, made = SAMPLE / "images" / "train-00000.tar", ["--tokenizer", str(SAMPLE / "tokenizer"), "--output"]
    command(["preprocess", "image-text", "--input", str(tar), *made, str(folder / "captions")])
    with tarfile.open(tar) as archive:
        pictures = [name for name in archive.getnames() if name.endswith((".png", ".webp"))][:64]
        records = [archive.extractfile(name.rpartition(".")[0] + ".json") for name in pictures]
        names = [json.load(record)["name"] for record in records if record is not None]
    asked = "What is this?"
    talks = [
        {
            "id": picture,
            "image": picture,
            "conversations": [{"from": "human", "value": f"<image>\n{asked}"}, {"from": "gpt", "value": name}],
        }
        for picture, name in zip(pictures, names, strict=True)
    ]
    (folder / "conversations.json").write_text(json.dumps(talks), encoding="utf-8")
    source = ["--input", str(folder / "conversations.json"), "--images", str(tar), "--template", "plain"]
    command(["preprocess", "conversations", *source, *made, str(folder / "talk")])
    questions = [
        {"image": picture, "question": asked, "answer": name} for picture, name in zip(pictures[:16], names, strict=False)
    ]
    (folder / "say.jsonl").write_text("".join(json.dumps(one) + "\n" for one in questions), encoding="utf-8")
    task = f'form: open\ndata: say.jsonl\npictures: {tar}\ndelimiter: "\\n"\nmax_new_tokens: 8\n'
    (folder / "say.yaml").write_text(task, encoding="utf-8")
    return folder / "base", ["--data.sources.talk", str(folder / "talk")], [str(folder / "say.yaml")]


def main(arguments: list[str]) -> int:
    from megatron_vlm.cli.main import main as command

    if not arguments or any(argument in ("-h", "--help") for argument in arguments):
        print(USAGE, end="")
        return 0 if arguments else 2
    if arguments[0].startswith("-"):
        print("finetune_llava.sh: name the CHECKPOINT first; --help tells more", file=sys.stderr)
        return 2
    checkpoint, rest, tasks = Path(arguments[0]), arguments[1:], []
    while "--tasks" in rest:
        at = rest.index("--tasks")
        tasks.append(rest[at + 1])
        del rest[at : at + 2]
    # every rank writes the same file under a name of its own: nobody reads a half one
    file = Path(os.environ.get("TMPDIR", "/tmp")) / f"finetune-{os.getppid()}-{os.environ.get('RANK', '0')}.yaml"
    file.write_text(configuration(checkpoint, tasks), encoding="utf-8")
    folder = ["--logging.directory", f"{checkpoint.name}-finetuned"] if "--logging.directory" not in rest else []
    return command(["train", "--config", str(file), *folder, *rest])


def smoke(script: str, arguments: list[str]) -> None:
    """Make data and a base model in runs/finetune-smoke, then fine-tune it through the script itself."""
    import subprocess

    folder = Path("runs/finetune-smoke").resolve()
    folder.mkdir(parents=True, exist_ok=True)
    base, overrides, tasks = _smoke(folder)
    if not (base / "checkpoints").exists():
        train = [
            sys.executable,
            "-m",
            "megatron_vlm.cli.main",
            "train",
            "--preset",
            "tiny",
            "--logging.directory",
            str(base),
        ]
        train += ["--data.tokenizer", str(SAMPLE / "tokenizer"), "--data.sources", f"{{captions: '{folder / 'captions'}'}}"]
        train += ["--curriculum.stages", "[{sources: {captions: 1.0}}]", "--data.sequence_length", "128"]
        train += ["--schedule.train_steps", "20", "--schedule.warmup_steps", "2"]
        train += ["--model.language.num_layers", "2", "--model.vision.num_layers", "2"]
        if subprocess.call(train):
            sys.exit("finetune_llava.sh: the base model could not be trained")
    os.environ.setdefault("NPROC_PER_NODE", "2")
    more = [
        "--tasks",
        *tasks,
        *overrides,
        "--schedule.global_batch_size",
        "4",
        "--schedule.micro_batch_size",
        "1",
        "--schedule.lr",
        "1e-3",
    ]
    more += ["--logging.directory", str(folder / "tuned"), "--logging.log_interval", "5"]
    launch([script, str(base), *more, *arguments])


if __name__ == "__main__":
    if sys.argv[1:2] != ["launch"]:
        sys.exit("finetuning.py is called by the script beside it: bash examples/finetune_llava.sh --help")
    given = sys.argv[3:]
    if "--smoke" in given:
        smoke(sys.argv[2], [argument for argument in given if argument != "--smoke"])
    elif not given or any(argument in ("-h", "--help") for argument in given):
        print(USAGE, end="")
        sys.exit(0)
    else:
        launch(sys.argv[2:])
