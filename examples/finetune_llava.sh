#!/usr/bin/env bash
''''true
# Fine-tune a checkpoint on LLaVA-style conversations: answers alone are learnt, two passes, tasks after each.
#
#   torchrun --nproc-per-node 8 examples/finetune_llava.sh CHECKPOINT --data.sources.talk data/talk [--tasks tasks/]
#   bash examples/finetune_llava.sh CHECKPOINT ...    the same, with torchrun called for you: NPROC_PER_NODE (default: GPUs of
#                                                     this machine, or 2 with --smoke), NNODES, NODE_RANK, MASTER_ADDR
#   bash examples/finetune_llava.sh --smoke           all of it on a small model and bundled pictures, on CPU ranks if need be
#
# The file is valid as both: bash reads this head, which ends at `exec`; to Python it is a string.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
exec "${PYTHON:-python3}" "$here/finetuning.py" launch "$here/$(basename "${BASH_SOURCE[0]}")" "$@"
'''
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from finetuning import main  # noqa: E402

sys.exit(main(sys.argv[1:]))
