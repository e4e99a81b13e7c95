"""A training step through megatron-core on the host platform, against a plain PyTorch twin with the same weights.

  python benchmarks/bench_step.py [--sequence-length 256] [--runs 9] [--json FILE]

The language model of the `tiny` preset, fp32, one rank, one thread; four micro-batches of two documents that fill their
packs. Both steps do forward, backward, accumulation, clipping and AdamW. The losses of the first three steps are compared
before any timing: they agree to 1e-4, or the benchmark ends. The ratio is what megatron-core's machinery costs on a host
with small kernels; it says nothing of a GPU.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("TORCH_COMPILE_DISABLE", "1")  # compiling takes minutes and is not what is measured

import numpy as np
import torch
from measuring import measure, parser, report, table
from plain_twin import PlainTwin

from megatron_vlm.cli.quiet import quiet_host_warnings
from megatron_vlm.config.data import TokenCounts
from megatron_vlm.config.loading import load_config
from megatron_vlm.config.run import RunConfig
from megatron_vlm.ops.assemble import MODALITY_TEXT, Segment

TOKENS = TokenCounts(vocab_size=4096, eod_id=0, image_token_id=1, pad_id=2)
RATE = 1e-3
MICRO_BATCHES, ROWS = 4, 2


def configuration(sequence_length: int) -> RunConfig:
    fields = {
        "data.sequence_length": sequence_length,
        "data.sources": "{text: unused}",
        "data.tokenizer": "unused",
        "curriculum.stages": "[{name: text, sources: {text: 1}, freeze: [vision, projector]}]",
        "schedule.train_steps": 1000,
        "optimizer.weight_decay": 0.0,
        "parallel.use_distributed_optimizer": "false",
    }
    return load_config(preset="tiny", overrides=[f"--{name}={value}" for name, value in fields.items()])


def main() -> None:
    arguments = parser(__doc__, runs=9)
    arguments.add_argument("--sequence-length", type=int, default=256, help="of a document (default: %(default)s)")
    args = arguments.parse_args()
    quiet_host_warnings()

    from megatron_vlm.data.micro_batch import make_micro_batch
    from megatron_vlm.parallel.topology import initialize, shutdown
    from megatron_vlm.training.engine import Engine, unwrap
    from megatron_vlm.training.step import train_step

    config = configuration(args.sequence_length)
    topology = initialize(config.parallel, config.schedule.seed)
    torch.set_num_threads(1)
    engine = Engine(config, TOKENS, topology)
    engine.enter_stage(0)

    rng = np.random.default_rng(0)
    shape = (MICRO_BATCHES, ROWS, args.sequence_length + 1)
    ids = rng.integers(3, TOKENS.vocab_size, shape).astype(np.int32)
    batches = [
        make_micro_batch(
            [[Segment(row, MODALITY_TEXT)] for row in rows],
            [],
            TOKENS,
            config.shape_of(0),
        )
        for rows in ids
    ]
    twin = PlainTwin(config.model.language, TOKENS.vocab_size)
    twin.copy_weights(unwrap(engine.chunks[0]).language_model)
    adam = config.optimizer
    optimizer = torch.optim.AdamW(
        twin.parameters(), RATE, betas=(adam.adam_beta1, adam.adam_beta2), eps=adam.adam_eps, weight_decay=0.0
    )
    whole = torch.from_numpy(ids).long()
    count = MICRO_BATCHES * ROWS * args.sequence_length
    step = 0

    def through_core() -> float:
        nonlocal step
        step += 1
        return train_step(engine, batches, topology, RATE).loss

    def plain() -> float:
        optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for rows in whole:
            loss = twin(rows[:, :-1], rows[:, 1:])
            (loss / count).backward()
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(twin.parameters(), adam.clip_grad)
        optimizer.step()
        return total / count

    for number in range(3):
        ours, theirs = through_core(), plain()
        if abs(ours - theirs) > 1e-4:
            raise SystemExit(
                f"step {number}: megatron-core's loss is {ours}, the twin's {theirs}: they are not the same model"
            )
    timings = measure({"megatron-core, host": through_core, "plain PyTorch": plain}, args.runs)
    millions = sum(p.numel() for p in twin.parameters()) / 1e6
    print(f"{millions:.2f} M parameters, {MICRO_BATCHES} micro-batches of {ROWS} x {args.sequence_length} tokens")
    print(table(timings, "plain PyTorch"))
    report(args, {"timings": timings, "parameters": millions * 1e6, "tokens": count})
    shutdown()


if __name__ == "__main__":
    main()
