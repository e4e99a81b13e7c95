#!/usr/bin/env bash
''''true
# Pre-train the 79M model of arXiv 2503.07603: text first, pictures over the last fifth of the run.
#
#   torchrun --nproc-per-node 8 examples/pretrain_vlm_79m.sh --data.tokenizer tok/ \
#       --data.sources.text data/text --data.sources.captions data/captions
#   bash examples/pretrain_vlm_79m.sh ...        the same, with torchrun called for you: NPROC_PER_NODE (default: GPUs of
#                                               this machine, or 4 with --smoke), NNODES, NODE_RANK, MASTER_ADDR, MASTER_PORT
#   bash examples/pretrain_vlm_79m.sh --smoke    a small model over the same code path, on CPU ranks if need be
#
# The file is valid as both: bash reads this head, which ends at `exec`; to Python it is a string.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
exec "${PYTHON:-python3}" "$here/recipe.py" launch "$here/$(basename "${BASH_SOURCE[0]}")" "$@"
'''
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from recipe import main  # noqa: E402

sys.exit(main("vlm_79m", sys.argv[1:]))
